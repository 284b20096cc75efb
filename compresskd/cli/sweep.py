"""A sweep's folder: named by what its jobs share, so that the same sweep comes back to its own results."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compresskd.run import (
    FAILED,
    FINISHED,
    AlreadyFinished,
    Foreign,
    InUse,
    Record,
    RunDirectoryError,
    check_kind,
    describe_owner,
    open_run,
    read_bytes,
    read_record,
)

_HASH_DIGITS = 8
_LONGEST_NAME = 255  # bytes of a file's name, on nearly every file system
_LARGEST_CONFIG = 2**24  # bytes
_LEFT = "was left unfinished; the same command resumes it"


def naming_overrides(jobs: Sequence[Sequence[str]], typed: Sequence[str], outputs_dir: str) -> list[str]:
    """Hydra overrides that name the sweep's folder and its jobs; what the user named is left alone.

    The folder is `OUTPUTS/sweeps/KEYS_HASH`, with the keys that vary and a hash of all that does not: the same sweep
    started again, or with more values, finds its finished jobs there. A job's folder holds only what varies.

    Args:
        jobs: overrides of each job, `key=value`.
        typed: what the user typed.
        outputs_dir: folder of all outputs.

    Raises:
        RunDirectoryError: a job would get a name that no folder can have.
    """
    varying = varying_keys(jobs)
    constant = sorted({_split(line) for line in jobs[0] if _split(line)[0] not in varying})
    shared = [*varying, *(f"{key}={value}" for key, value in constant if not _changes_nothing(key))]
    digest = hashlib.sha256("\n".join(shared).encode()).hexdigest()[:_HASH_DIGITS]
    name = "+".join(key.rpartition(".")[2] for key in varying) or "single"
    named = {_split(line)[0] for line in typed}
    overrides = []
    if "hydra.sweep.dir" not in named:
        overrides.append(f"hydra.sweep.dir='{Path(outputs_dir).absolute()}/sweeps/{name}_{digest}'")
    if "hydra.sweep.subdir" not in named:
        _check_lengths(jobs, varying)
        if constant:
            excluded = ",".join(f"'{key}'" for key, _ in constant)
            overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]")
    return overrides


def check_folder(directory: Path) -> None:
    """See that a sweep may be kept in `directory`: it is missing, empty, or a sweep's already.

    Raises:
        Foreign: it holds files, and they are no sweep's; none of them has been touched.
        RunDirectoryError: what Hydra would write there is a link.
    """
    said = directory / "multirun.yaml"  # Hydra writes it first of all
    check_kind(said)
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if said.exists() and b"compresskd" in read_bytes(said, at_most=_LARGEST_CONFIG):
        return
    if any(isinstance(record, Record) for _, record in _records(directory)):
        return
    raise Foreign(
        f"{directory} is not empty and is no sweep of compresskd; nothing in it was touched; "
        "write another hydra.sweep.dir=DIR, which is empty or not there"
    )


def varying_keys(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose value is not the same in all jobs, in alphabetical order, as Hydra names a job by them."""
    values = [dict(_split(line) for line in job) for job in jobs]
    keys = sorted({key for job in values for key in job})
    return [key for key in keys if len({job.get(key) for job in values}) > 1]


def wait_for_others(directory: Path, say: Callable[[str], None]) -> None:
    """Wait until nobody works on a job below a sweep's folder any more: another sweep may share the work."""
    for lock in sorted(directory.rglob("run.lock")):  # a finished run has none
        folder = lock.parent
        with contextlib.suppress(
            AlreadyFinished, RunDirectoryError
        ):  # what is wrong is told with the failures
            try:
                open_run(folder).close()
            except InUse:
                say(f"waiting for {describe_owner(folder)}, which runs {folder}")
                open_run(folder, wait=-1).close()


def failures(directory: Path, jobs: Sequence[Sequence[str]]) -> dict[str, str]:
    """What failed, or is not finished, of a sweep: job folder to what happened.

    Jobs of another sweep that has come to the same folder (with other values) are none of ours.
    """
    varying = varying_keys(jobs)
    ours = [set(_lines(job, varying)) for job in jobs]
    found = {}
    for folder, record in _records(directory):
        if isinstance(record, RunDirectoryError):
            found[str(folder)] = str(record)
        elif not any(lines <= set(record.overrides) for lines in ours) or record.status == FINISHED:
            continue
        elif record.status == FAILED and record.error is not None:
            found[str(folder)] = f"{record.error['type']}: {record.error['message']}"
        else:
            found[str(folder)] = _LEFT
    return found


def _records(directory: Path) -> Iterator[tuple[Path, Record | RunDirectoryError]]:
    for path in sorted(directory.rglob("record.json")):
        try:
            yield path.parent, read_record(path.parent)
        except RunDirectoryError as error:
            yield path.parent, error


def _check_lengths(jobs: Sequence[Sequence[str]], varying: Sequence[str]) -> None:
    for job in jobs:
        name = ",".join(sorted(_lines(job, varying)))
        if any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
            raise RunDirectoryError(
                f"a job's folder cannot be named after all that varies ({len(name)} characters: {name[:40]}...); "
                "write hydra.sweep.subdir='${hydra.job.num}', or vary less at once"
            )


def _changes_nothing(key: str) -> bool:
    """Whether a key only says where results go and how jobs are started."""
    return key == "outputs_dir" or key.startswith(("hydra.", "hydra/"))


def _lines(job: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides of a job that are about these keys."""
    return [line for line in job if _split(line)[0] in keys]


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.lstrip("+~"), value
