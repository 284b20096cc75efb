"""A sweep's folder: named by what its jobs share, so that the same sweep comes back to its own results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from compresskd.run import FAILED, FINISHED, RunDirectoryError, read_record

_HASH_DIGITS = 8


def naming_overrides(jobs: Sequence[Sequence[str]], typed: Sequence[str], outputs_dir: str) -> list[str]:
    """Hydra overrides that name the sweep's folder and its jobs; what the user named is left alone.

    The folder is `OUTPUTS/sweeps/KEYS_HASH`, with the keys that vary and a hash of all that does not: the same sweep
    started again, or with more values, finds its finished jobs there. A job's folder holds only what varies.

    Args:
        jobs: overrides of each job, `key=value`.
        typed: what the user typed.
        outputs_dir: folder of all outputs.
    """
    values = [dict(_split(line) for line in job) for job in jobs]
    keys = list(dict.fromkeys(key for job in values for key in job))
    varying = [key for key in keys if len({job.get(key) for job in values}) > 1]
    constant = [key for key in keys if key not in varying]
    shared = "\n".join(sorted(f"{key}={values[0][key]}" for key in constant if key != "outputs_dir"))
    digest = hashlib.sha256(shared.encode()).hexdigest()[:_HASH_DIGITS]
    name = "+".join(key.rpartition(".")[2] for key in varying) or "single"
    named = {_split(line)[0] for line in typed}
    overrides = []
    if "hydra.sweep.dir" not in named:
        overrides.append(f"hydra.sweep.dir='{Path(outputs_dir).absolute()}/sweeps/{name}_{digest}'")
    if "hydra.sweep.subdir" not in named and constant:
        excluded = ",".join(f"'{key}'" for key in constant)
        overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]")
    return overrides


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.lstrip("+~"), value


def failures(directory: Path) -> dict[str, str]:
    """What failed, or is not finished, below a sweep's folder: job folder to what happened."""
    found = {}
    for path in sorted(directory.rglob("record.json")):
        try:
            record = read_record(path.parent)
        except RunDirectoryError as error:
            found[str(path.parent)] = str(error)
            continue
        if record.status == FAILED and record.error is not None:
            found[str(path.parent)] = f"{record.error['type']}: {record.error['message']}"
        elif record.status != FINISHED:
            found[str(path.parent)] = record.status
    return found
