"""The key that only this user has: 32 random bytes in the user's home, made when a run first needs them."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

_SIZE = 32
_OWN = 0o600


class NoKey(Exception):
    """There is no key, or none that could be this user's alone; the message says which, and what to do."""


def key_file() -> Path:
    """Where the key is: below XDG_CONFIG_HOME, which is ~/.config unless it says otherwise."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.config").expanduser()) / "compresskd" / "key"


def read_key() -> bytes:
    """The key. Raises NoKey."""
    path = key_file()
    try:
        with path.open("rb") as file:
            status, key = os.fstat(file.fileno()), file.read(_SIZE + 1)
    except OSError as error:
        raise NoKey(f"there is no key of yours ({path}: {error.strerror or error})") from error
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise NoKey(f"your key {path} can be used by others; make it yours alone: chmod 600 {path}")
    if len(key) != _SIZE:
        raise NoKey(f"your key {path} is damaged; remove it, and the next run makes another")
    return key


def make_key() -> bytes:
    """The key, made where there is none; one that is there is never replaced. Raises NoKey."""
    path = key_file()
    if not path.exists():
        temporary = path.with_name(f".key.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWN)
            with open(number, "wb") as file:
                file.write(secrets.token_bytes(_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(temporary, path)
        except OSError as error:
            raise NoKey(f"a key of yours cannot be made ({path}: {error.strerror or error})") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return read_key()
