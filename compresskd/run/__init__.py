"""The run directory as typed data: exclusive creation, atomic writes, the record, the lock.

DIRECTORY/
  record.json       what happened, everything a reviewer asks for (`Record`)
  config.yaml       the resolved configuration
  overrides.yaml    what was typed
  metrics.jsonl     one line an epoch
  predictions.npz   predicted class of every test sample, one array a stage
  log.txt
  trackers.json     what each tracker calls the run, so that a resumed one goes on there
  tensorboard/      events, where that tracker is asked for
  model/            the final model of a finished run: model.safetensors and structure.json, and model.ckd
  run.lock          held by the process that writes here, which run.owner names; both gone from a finished run
  checkpoints/STAGE/  model.safetensors and structure.json of each finished stage
  checkpoints/training.ckpt   where an unfinished stage stands

Nothing is written into a folder that is no run's, and nothing through a link (`ownership`); what is read is bounded
and judged before it is used.

A killed process may leave hidden `.*.compresskd-tmp` files; whoever goes on removes them. This package imports no
torch, so that reading records stays instant.
"""

from compresskd.run.directory import Followed, Run, open_run
from compresskd.run.errors import AlreadyFinished, Foreign, InUse, Lost, RunDirectoryError
from compresskd.run.factors import FACTORS, factors
from compresskd.run.files import (
    atomic,
    atomic_folder,
    open_regular,
    read_bytes,
    read_checked,
    remove_leftovers_of,
    write_checked,
    write_text,
)
from compresskd.run.fingerprints import changes, fingerprints
from compresskd.run.lock import describe_owner
from compresskd.run.metrics import read_metrics
from compresskd.run.ownership import RECORD, check_kind, check_ours
from compresskd.run.record import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PRUNED,
    RUNNING,
    SCHEMA,
    Record,
    is_reproduced,
    read_record,
)
from compresskd.run.remains import check_remains

__all__ = [
    "FACTORS",
    "FAILED",
    "FINISHED",
    "INTERRUPTED",
    "PRUNED",
    "RECORD",
    "RUNNING",
    "SCHEMA",
    "AlreadyFinished",
    "Followed",
    "Foreign",
    "InUse",
    "Lost",
    "Record",
    "Run",
    "RunDirectoryError",
    "atomic",
    "atomic_folder",
    "changes",
    "check_kind",
    "check_ours",
    "check_remains",
    "describe_owner",
    "factors",
    "fingerprints",
    "is_reproduced",
    "open_regular",
    "open_run",
    "read_bytes",
    "read_checked",
    "read_metrics",
    "read_record",
    "remove_leftovers_of",
    "write_checked",
    "write_text",
]
