"""What a process says when it ends badly, and the number that it ends with."""

from __future__ import annotations

import atexit
import functools
import gc
import io
import os
import sys
from typing import Any

from compresskd.run import RunDirectoryError
from compresskd.targets.paths import Untrusted

USAGE_ERROR, FAILURE, NOT_MET, INTERRUPT = 2, 1, 3, 130


def describe(error: Exception) -> str:
    """An error in the words that a user gets."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ") + notes
    if type(error).__module__.startswith("compresskd."):  # an error of ours says all that there is to say
        return f"{error}{notes}"
    return f"{type(error).__name__}: {error}{notes} (--verbose shows where)"


def is_usage_error(error: Exception) -> bool:
    """Whether the command line is to blame."""
    from compresskd.config.faults import ConfigError

    return isinstance(error, ConfigError | RunDirectoryError | Untrusted)


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"compresskd: {text}", file=sys.stderr)


@functools.cache
def end_at_once() -> None:
    """Let this process end without a last look for garbage: among all that torch holds it takes half a second."""
    atexit.register(gc.freeze)


class _Unbreakable(io.FileIO):
    """Standard output that goes nowhere once its reader (`head`, `less`) has gone: a run is not lost to that."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def outlive_the_reader() -> None:
    """Go on where whoever reads standard output goes away, or cannot show every character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets \\u2605 for a star, and no error
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is not sys.__stdout__ or sys.stdout is None or sys.stdout.isatty():
        return
    sys.stdout.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Unbreakable(sys.stdout.fileno(), "w", closefd=False)),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=bool(sys.stdout.line_buffering),
    )
