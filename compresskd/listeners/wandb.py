"""Weights & Biases: files on this machine, which `wandb sync` uploads, or its servers at once."""

from __future__ import annotations

import inspect
import os
import secrets
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from compresskd.listeners.tracker import Job, check_writable, library
from compresskd.options import Refusal, Whole, one_of
from compresskd.run import FINISHED

OFFLINE, ONLINE = "offline", "online"
_HEAD, _BLOCK, _OF_RECORD = 7, 2**15, 7  # bytes of a file of records: its head, a block, the head of a record
_WHOLE, _LAST = 1, 4  # kinds of records that end here


@dataclass(frozen=True)
class WandB:
    """Write a run as W&B has it, and send it where that is asked for.

    Attributes:
        project: where runs are gathered.
        entity: whose project it is; None is the account's own.
        mode: `offline` writes files alone, `online` sends them too.
        directory: where the folder `wandb` is; None takes the outputs folder.
        max_model_bytes: a larger model file is not stored.
    """

    project: str = "compresskd"
    entity: str | None = None
    mode: Annotated[str, one_of(OFFLINE, ONLINE)] = OFFLINE
    directory: str | None = None
    max_model_bytes: Whole = 50_000_000

    def check(self, outputs: Path) -> None:
        """Errors as `Tracker.check`'s."""
        wandb = _wandb()
        check_writable("directory", Path(self.directory or outputs))
        if self.mode == ONLINE and not _is_logged_in(wandb):
            raise Refusal(
                "mode", "got online, and nobody is logged in; write wandb login first, or mode=offline"
            )

    def open(self, job: Job) -> _Run:
        """Go on in the run of before, in a further file."""
        folder = Path(self.directory or job.outputs)
        folder.mkdir(parents=True, exist_ok=True)
        identity = job.identity or secrets.token_hex(4)
        rows = list(_rows(folder, identity)) if job.identity else []
        wandb = _wandb()
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=identity,
            name=job.name,
            group=job.name.rpartition("/")[0] or None,
            dir=str(folder),
            config=dict(job.parameters),
            resume="allow" if self.mode == ONLINE and job.identity else None,
            reinit="create_new",  # a process may run several jobs
            settings=wandb.Settings(mode=self.mode, console="off", silent=True),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return _Run(run, identity, rows)


class _Run:
    """One run of W&B."""

    def __init__(self, run: Any, identity: str, rows: Sequence[Mapping[str, int]]):
        self._run, self.identity, self._before = run, identity, rows
        self._next = len(rows)  # its own steps only ever rise

    def steps(self, name: str) -> Collection[int]:
        """Result as `Following.steps`'; what another machine has sent is not seen."""
        return {row["epoch"] for row in self._before if name in row}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log({**values, "epoch": step}, step=self._next, commit=True)
        self._next += 1

    def finish(self, status: str, table: str, files: Sequence[Path]) -> None:
        """The table and the files among those of the run."""
        folder = Path(self._run.dir)
        (folder / "results.md").write_text(table, encoding="utf-8")
        for path in files:
            shutil.copyfile(path, folder / path.name)
        for name in ("results.md", *(path.name for path in files)):
            self._run.save(str(folder / name), base_path=str(folder), policy="now")
        self._run.finish(exit_code=0 if status == FINISHED else 1)


def _wandb() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it reports errors to its makers
    return library("wandb")


def _is_logged_in(wandb: Any) -> bool:
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False))
    return wandb.api.api_key is not None  # before version 0.31 or so


def _rows(folder: Path, identity: str) -> Iterator[dict[str, int]]:
    """The rows that runs of this name have written on this machine: the names in each, with its epoch."""
    record = library("wandb.proto.wandb_internal_pb2").Record
    for path in sorted((folder / "wandb").glob(f"*run-*-{identity}/run-{identity}.wandb")):
        for content in _records(path.read_bytes()):
            read = record.FromString(content)
            if read.WhichOneof("record_type") == "history":
                values = {
                    ".".join(item.nested_key) or item.key: item.value_json for item in read.history.item
                }
                yield {name: int(values.get("epoch", -1)) for name in values}


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of a file in the format of LevelDB's log; a torn one at the end is left out."""
    position, parts = _HEAD, b""
    while position + _OF_RECORD <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _OF_RECORD:  # the rest of a block is filled up
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += _OF_RECORD
        parts += content[position : position + length]
        position += length
        if kind == 0 or position > len(content):
            return
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
