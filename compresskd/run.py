"""The run directory as typed data: exclusive creation, atomic writes, the record, the lock.

    DIRECTORY/
      record.json       what happened, everything a reviewer asks for (`Record`)
      config.yaml       the resolved configuration
      overrides.yaml    what was typed
      metrics.jsonl     one line an epoch
      predictions.npz   predicted class of every test sample, one array a stage
      log.txt
      run.lock          held by the process that writes here (named in run.owner)
      checkpoints/STAGE/  model.safetensors and structure.json of each finished stage
      checkpoints/training.ckpt   where an unfinished stage stands

This module imports no torch, so that reading records stays instant.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

SCHEMA = 1
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
_DIGEST_SIZE = hashlib.sha256().digest_size
_MAGIC = b"compresskd-checkpoint-1\n"


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked: it is taken, finished, damaged or not writable."""


class InUse(RunDirectoryError):
    """Another process is writing in the directory."""


class AlreadyFinished(RunDirectoryError):
    """The directory holds a finished run."""


@dataclass
class Record:
    """What `record.json` holds. Accuracies are fractions, times are seconds, sizes are bytes."""

    strategy: str
    config: dict[str, Any]
    overrides: list[str]
    seed: int
    schema: int = SCHEMA
    status: str = RUNNING
    created: str = ""
    updated: str = ""
    wall_seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    final: str | None = None
    error: dict[str, str] | None = None

    def stage(self, name: str) -> dict[str, Any] | None:
        """The entry of the stage called `name`, or None where that stage has not finished."""
        return next((s for s in self.stages if s["name"] == name), None)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record, ignoring keys of later versions. Raises ValueError where it is not one."""
        values = json.loads(text)
        if not isinstance(values, dict) or "strategy" not in values:
            raise ValueError("not a record: expected a JSON object with the key 'strategy'")
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        return cls(**known)


class Run:
    """One run directory, held exclusively by this process between `open` and `close`."""

    def __init__(self, directory: Path, lock: FileLock, record: Record | None):
        self.directory = directory
        self._lock = lock
        self.record = record

    @property
    def resumed(self) -> bool:
        """Whether the directory already held an unfinished record when it was opened."""
        return self.record is not None

    @property
    def checkpoints(self) -> Path:
        """Folder of the stages' checkpoints."""
        return self.directory / "checkpoints"

    def start(self, record: Record) -> None:
        """Write the first record of a new run, or go on with the one that is there."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if self.record is None:
            self.record = record
            self.record.created = now
        self.record.status, self.record.error = RUNNING, None
        self.save()

    def save(self) -> None:
        """Write `record.json` atomically."""
        if self.record is None:
            raise RunDirectoryError(f"{self.directory}: nothing to save before start()")
        self.record.updated = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(self.directory / "record.json", json.dumps(asdict(self.record), indent=1) + "\n")

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one epoch's line to `metrics.jsonl`."""
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_metrics(self, stage: str, num_epochs: int, finished: set[str]) -> None:
        """Drop what a killed process wrote past its last checkpoint, so that resuming repeats nothing.

        Keeps the lines of the stages in `finished` and the first `num_epochs` epochs of `stage`.
        """
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue  # the torn last line of a killed process
            if values["stage"] in finished or (values["stage"] == stage and values["epoch"] < num_epochs):
                kept.append(line)
        write_text(path, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.release()


def open_run(directory: Path, *, unique: bool = False, wait: float = 0.0) -> Run:
    """Take `directory` for this process.

    Args:
        directory: created where it is missing.
        unique: the name was made up by the program, so where it is taken `directory_2`, `directory_3`...
            is taken instead. Without it an unfinished run found there is gone on with.
        wait: seconds to wait for another process that holds it; -1 waits for ever.

    Raises:
        InUse: another process is writing there.
        AlreadyFinished: the run there is finished.
        RunDirectoryError: the record there is unreadable, or the directory cannot be written.
    """
    candidate, number = directory, 1
    while True:
        lock = _acquire(candidate, wait)
        taken = lock is None or (candidate / "record.json").exists()
        if lock is not None and not (unique and taken):
            break
        if lock is not None:
            lock.release()
        if not unique:
            raise InUse(
                f"{directory} is in use by another process ({_owner(directory)}); "
                "wait for it, or write another hydra.run.dir=DIR"
            )
        number += 1
        candidate = directory.with_name(f"{directory.name}_{number}")
    try:
        record = read_record(candidate) if (candidate / "record.json").exists() else None
    except RunDirectoryError:
        lock.release()
        raise
    if record is not None and record.status == FINISHED:
        lock.release()
        raise AlreadyFinished(
            f"{candidate} holds a finished run, which is never overwritten; "
            "write another hydra.run.dir=DIR, or remove that folder"
        )
    return Run(candidate, lock, record)


def read_record(directory: Path) -> Record:
    """Read DIRECTORY/record.json. Raises RunDirectoryError saying what is wrong with it."""
    path = directory / "record.json"
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{directory} is not a run directory: it has no record.json") from None
    except (ValueError, TypeError, OSError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error


def _acquire(directory: Path, wait: float) -> FileLock | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "run.lock")
        lock.acquire(timeout=wait)
    except Timeout:
        return None
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {directory}: {error.strerror or error}; "
            "write another outputs_dir=DIR or hydra.run.dir=DIR"
        ) from error
    with contextlib.suppress(OSError):  # who holds it, for the message of those who wait
        (directory / "run.owner").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def _owner(directory: Path) -> str:
    try:
        return (directory / "run.owner").read_text()
    except OSError:
        return "owner unknown"


def describe_owner(directory: Path) -> str:
    """Say which process holds `directory` (for messages)."""
    return _owner(directory)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it replaces `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_checked(path: Path, payload: bytes) -> None:
    """Write bytes atomically behind a magic line and their SHA-256, for `read_checked`."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest())
        file.write(payload)


def read_checked(path: Path) -> bytes:
    """Read what `write_checked` wrote. Raises RunDirectoryError where a byte of it changed."""
    content = path.read_bytes()
    head = len(_MAGIC) + _DIGEST_SIZE
    if content[: len(_MAGIC)] != _MAGIC or len(content) < head:
        raise RunDirectoryError(f"{path} is not a training checkpoint; remove it to repeat the stage")
    payload = content[head:]
    if hashlib.sha256(payload).digest() != content[len(_MAGIC) : head]:
        raise RunDirectoryError(
            f"{path} is damaged (its SHA-256 does not match); remove it to repeat the stage from its start"
        )
    return payload
