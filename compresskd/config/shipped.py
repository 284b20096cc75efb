"""Where the shipped configuration lies. Importing this loads nothing."""

from pathlib import Path


def conf_dir() -> Path:
    """The shipped configuration: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
