"""What can be wrong with a model file, and how the errors of what reads it are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from compresskd.run.errors import RunDirectoryError
from compresskd.targets.paths import Untrusted

_MAX_LENGTH = 1000  # of a message
# what parsing and building from hostile values may raise; anything else is a fault of this program
_OF_CONTENT = (
    ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
    safetensors.SafetensorError,
)  # fmt: skip


class ArtifactError(ValueError):
    """A model's files are incomplete, damaged, or name what may not be loaded."""


class UntrustedModel(ArtifactError, Untrusted):
    """A model's files name code that compresskd does not ship, and nobody has said that it may run."""


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Whatever is wrong with the content of `path` becomes an ArtifactError that begins with it."""
    try:
        yield
    except (ArtifactError, RunDirectoryError) as error:
        if isinstance(error, ArtifactError) and str(error).startswith(str(path)):
            raise
        kind = type(error) if isinstance(error, ArtifactError) else ArtifactError
        said = _shortly(error)
        raise kind(said if said.startswith(str(path)) else f"{path}: {said}") from error
    except Untrusted as error:
        raise UntrustedModel(f"{path}: {_shortly(error)}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except _OF_CONTENT as error:
        raise ArtifactError(f"{path}: {_shortly(error)}") from error


def _shortly(error: Exception) -> str:
    """The first line of what an error says, and of a long one its beginning: it may quote the file."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _MAX_LENGTH else f"{lines[0][:_MAX_LENGTH]}..."
