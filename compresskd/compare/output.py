"""Files that compare writes: whole or not at all, and never over a file that it did not write itself."""

import os
import tempfile
from pathlib import Path

GENERATOR = "compresskd compare"
MARKS = {  # how each kind of file begins or what its head contains, by which we know our own
    "html": f'<meta name="generator" content="{GENERATOR}">',
    "markdown": f"<!-- {GENERATOR} -->",
    "json": f'"generator": "{GENERATOR}"',
    "csv": "compare_group,compare_run,",
}
_HEAD = 4096


class OutputError(ValueError):
    """A path that must not or cannot be written; the message says what to do instead."""


def check(path: Path, kind: str, force: bool) -> None:
    """Refuse before any work what `write` would refuse after it.

    Raises:
        OutputError: no such folder, not a file, or a file of someone else's without `force`.
    """
    try:
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist")
        if not path.exists():
            return
        if not path.is_file():
            raise OutputError(f"{path}: is no ordinary file; give the name of a file to write")
        if force or path.stat().st_size == 0 or _is_ours(path, kind):
            return
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from None
    raise OutputError(
        f"{path}: exists and was not written by {GENERATOR}; choose another name or add --force"
    )


def check_own(path: Path, kind: str) -> None:
    """Refuse, besides what `check` refuses, a link: nobody named it, it was found in a sweep's folder.

    Raises:
        OutputError: as `check`'s.
    """
    if path.is_symlink():
        raise OutputError(f"{path}: is a link, which only a name given by --{kind} is written through")
    check(path, kind, force=False)


def _is_ours(path: Path, kind: str) -> bool:
    with path.open("rb") as file:
        return MARKS[kind].encode() in file.read(_HEAD)


def write(path: Path, text: str) -> None:
    """Write `text` beside `path`, then put it there in one step (through a symbolic link, to its target).

    Raises:
        OutputError: the folder cannot be written, the disk is full.
    """
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:50]}.", suffix=".tmp", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide a report from one's colleagues
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from None
