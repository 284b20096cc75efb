"""What a record says of its configuration may be anything: it is used, or refused in one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compresskd.config.faults import ConfigError
from compresskd.run import RECORD, RunDirectoryError
from compresskd.targets.paths import Untrusted


@contextmanager
def usable(directory: Path) -> Iterator[None]:
    """Inside, only what a record says is read and built: whatever goes wrong there is the record's fault."""
    try:
        yield
    except (ConfigError, RunDirectoryError, Untrusted):
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0][:300]
        raise RunDirectoryError(
            f"{directory / RECORD}: its configuration cannot be used ({type(error).__name__}: {said})"
        ) from error
