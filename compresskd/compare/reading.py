"""Files that somebody else may have written, read without waiting and within bounds."""

import os
import stat
from pathlib import Path


class NotReadable(ValueError):
    """Something that is no ordinary file, cannot be opened or is too large; the message says which."""


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of an ordinary file of at most `max_bytes`.

    Raises:
        FileNotFoundError: there is none.
        NotReadable: a folder, a pipe or a device of this name, no permission, or more bytes.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise NotReadable("not a regular file")
            if about.st_size > max_bytes:
                raise NotReadable(f"{about.st_size:,} bytes: too large (limit {max_bytes:,})")
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReadable(f"cannot be read: {error.strerror or error}") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO of this name must not hang the reader
