"""What the user says on the command line: `--trust PACKAGE`, once for each or with commas between."""

from __future__ import annotations

from collections.abc import Sequence

from compresskd.targets.paths import Untrusted

FLAG = "--trust"
HELP = "package whose code may run, besides compresskd; several: repeat it, or write commas between"


def trusted_packages(said: Sequence[str]) -> tuple[str, ...]:
    """The packages in what stood after each flag. Raises Untrusted for what is the name of none."""
    names = [name.strip() for text in said for name in text.split(",")]
    for name in names:
        if not name.isidentifier():
            whole = name.partition(".")[0]
            instead = whole if whole.isidentifier() else "PACKAGE"
            raise Untrusted(f"{FLAG}: got {name or 'nothing'}; write the name of a package: {FLAG} {instead}")
    return tuple(dict.fromkeys(names))
