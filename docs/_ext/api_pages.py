"""One page of docstrings for every room of the package, written anew at each build into reference/api/."""

import pkgutil
from importlib import import_module
from pathlib import Path

from sphinx.application import Sphinx

import compresskd

FOLDER = Path("reference", "api")


def rooms() -> list[str]:
    """The packages and modules directly below compresskd."""
    found = [name for _, name, _ in pkgutil.iter_modules(compresskd.__path__)]
    return sorted(name for name in found if not name.startswith("_"))


def modules_of(room: str) -> list[str]:
    """The room and all that is below it, by dotted name."""
    package = import_module(f"compresskd.{room}")
    below = pkgutil.walk_packages(getattr(package, "__path__", []), prefix=f"{package.__name__}.")
    return [package.__name__, *sorted(name for _, name, _ in below)]


def page(room: str) -> str:
    """The text of a room's page."""
    lines = [f"compresskd.{room}", "=" * (len(room) + 11), ""]
    for module in modules_of(room):
        if module != f"compresskd.{room}":
            lines += [module, "-" * len(module), ""]
        lines += [f".. automodule:: {module}", "   :members:", "   :ignore-module-all:", ""]
    return "\n".join(lines)


def _write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{room}.rst": page(room) for room in rooms()}
    for stale in {path.name for path in folder.iterdir()} - pages.keys():
        (folder / stale).unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for what there is."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
