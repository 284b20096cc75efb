"""What a tracker is, and what trackers share: finding their packages, and asking whether a store can be used."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from compresskd.options import OptionError, Refusal

_SECONDS_TO_CONNECT = 5.0


@dataclass(frozen=True)
class Job:
    """What a tracker is told of a run that it begins to follow.

    Attributes:
        name: the run's folder as it lies in the outputs folder, `sweeps/rank_3fa9c1d0/rank=4`.
        directory: the run's folder.
        outputs: the folder of all outputs.
        parameters: the configuration by dotted keys; long values are shortened.
        identity: what the tracker called the run when it followed it before; None where it never has.
    """

    name: str
    directory: Path
    outputs: Path
    parameters: Mapping[str, str]
    identity: str | None


class Following(Protocol):
    """One run as a tracker has it.

    Attributes:
        identity: by which the tracker finds it again.
    """

    identity: str

    def steps(self, name: str) -> Collection[int]:
        """The steps at which the tracker has a value of this name already."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take values by name, `distill/validation_accuracy`; all of them or none."""
        ...

    def finish(self, status: str, table: str, files: Sequence[Path]) -> None:
        """Take the end of the run: finished, failed or interrupted.

        Args:
            table: the results of its stages, in Markdown.
            files: the metrics and, where it is not too large, the model of a finished run.
        """
        ...


class Tracker(Protocol):
    """Where runs are followed. Whatever it raises after `check` is told once, and the run goes on without it."""

    @property
    def max_model_bytes(self) -> int:
        """The largest model file that is handed to `Following.finish`."""
        ...

    def check(self, outputs: Path) -> None:
        """Raise OptionError where a package is missing, or the store cannot be used; nothing is written."""
        ...

    def open(self, job: Job) -> Following:
        """Begin to follow a run, or go on."""
        ...


def library(name: str, *needed: str) -> Any:
    """Import what a tracker needs, its warnings left out.

    Raises:
        Refusal: it is not there.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for each in needed:
                import_module(each)
            return import_module(name)
    except ImportError as error:
        raise Refusal("", f"{error}; write pip install 'compresskd[trackers]'") from error


def check_writable(field: str, folder: Path) -> None:
    """Raise OptionError where no file can be made in a folder, which may not be there yet."""
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise OptionError(field, str(folder), "a folder that can be written in")


def check_reachable(field: str, url: str, host: str, port: int) -> None:
    """Raise OptionError where nobody answers at an address."""
    try:
        socket.create_connection((host, port), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise OptionError(field, url, f"a server that answers ({error.strerror or error})") from error


def milliseconds() -> int:
    """Now, as event stores have it."""
    return int(1000 * time.time())
