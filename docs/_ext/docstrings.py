"""Docstrings are plain text with `names` in single backticks; this makes them safe to read as reStructuredText."""

import re
from collections.abc import Iterator
from types import BuiltinMethodType

from sphinx.application import Sphinx

_LITERAL = re.compile(r"(:[\w:]+:`[^`]+`|``.+?``|`[^`]+`)")
_SPECIAL = re.compile(r"(\*|\||(?<=\w)_(?!\w))")
_ITEM = re.compile(r"\s*- ")


def safe(line: str) -> str:
    """`x_` -> ``x_``, and what reStructuredText would take for markup outside of such names is escaped."""
    parts = _LITERAL.split(line)
    for at, part in enumerate(parts):
        if at % 2 == 0:
            parts[at] = ("\\" if at and part[:1].isalnum() else "") + _SPECIAL.sub(r"\\\1", part)
        elif part.startswith("`") and not part.startswith("``"):
            parts[at] = f"`{part}`"
    return "".join(parts).replace("``\\", "``\\ ")


def apart(lines: list[str]) -> Iterator[str]:
    """The lines, with an empty one between a list and the text around it."""
    listed = None  # indentation of the list that the last line belongs to
    before = ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if _ITEM.match(line):
            if listed != indent and before.strip():
                yield ""
            listed = indent
        elif listed is not None and line.strip() and indent <= listed:
            listed = None
            if before.strip():
                yield ""
        yield line
        before = line


def _prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line if line.lstrip().startswith((">>>", "... ")) else safe(line) for line in apart(lines)]


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    return True if isinstance(obj, BuiltinMethodType) else None  # an alias, whose docstring is Python's


def setup(app: Sphinx) -> dict[str, bool]:
    """Run ahead of napoleon, which then finds its sections."""
    app.connect("autodoc-process-docstring", _prepare, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
