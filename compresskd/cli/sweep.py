"""A sweep's folder: named by what its jobs share, so that the same sweep comes back to its own results."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

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
FOLDER_OF = "folder_of"  # the resolver that tells the folder of a job by its name
OF_HYDRA = ("hydra.", "hydra/")
_SINGLE = "single"  # where nothing varies
_DETERMINING = (
    "task", "data", "student", "optimizer", "scheduler", "train", "seed", "processes", "device", "precision", "tt",
    "measure",
)  # fmt: skip
_LEFT = "was left unfinished; the same command resumes it"


@dataclass(frozen=True)
class Once:
    """A job that stands for several, which differ in what does not concern them.

    Attributes:
        folder: its own in the sweep's.
        job: composed without the keys that do not matter, so that its record is the same whichever values are swept.
        members: the jobs that it stands for, see `job_key`.
        names: theirs, as Hydra writes them.
    """

    folder: str
    job: Any
    members: tuple[frozenset[str], ...]
    names: tuple[str, ...]


class Forget(Callback):
    """Lets go of a job's configuration when it has ended: Hydra keeps all of them to the end of a sweep."""

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Only what a sweeper asks for is left."""
        job_return.cfg = job_return.hydra_cfg = None


def naming_overrides(
    jobs: Sequence[Sequence[str]], named: Collection[str], outputs_dir: str, once: Sequence[Once] = ()
) -> list[str]:
    """Hydra overrides that name the sweep's folder and its jobs; what the user named is left alone.

    The folder is `OUTPUTS/sweeps/KEYS_HASH`, with the keys that vary and a hash of all that does not: the same sweep
    started again, or with more values, finds its finished jobs there. A job's folder holds only what varies, and
    concerns it.

    Args:
        jobs: overrides of each job, `key=value`.
        named: of `dir` and `subdir`, what the user says.
        outputs_dir: folder of all outputs.
        once: jobs that stand for several.

    Raises:
        RunDirectoryError: a job would get a name that no folder can have.
    """
    varying = varying_keys(jobs)
    constant = sorted({_split(line) for line in jobs[0] if _split(line)[0] not in varying})
    shared = [*varying, *(f"{key}={value}" for key, value in constant if not _changes_nothing(key))]
    digest = hashlib.sha256("\n".join(shared).encode()).hexdigest()[:_HASH_DIGITS]
    name = "+".join(key.rpartition(".")[2] for key in varying) or _SINGLE
    overrides = []
    if "dir" not in named:
        overrides.append(f"hydra.sweep.dir='{Path(outputs_dir).absolute()}/sweeps/{name}_{digest}'")
    if "subdir" not in named:
        _check_lengths(jobs, varying)
        if constant:
            excluded = ",".join(f"'{key}'" for key, _ in constant)
            overrides.append(f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]")
        job = "${hydra.job.override_dirname}" if varying else _SINGLE
        overrides.append(f"hydra.sweep.subdir='{f'${{{FOLDER_OF}:{job}}}' if once else job}'")
    return overrides


def identity(experiment: Any) -> str:
    """All that a run's results follow from: two runs that have it in common are one run.

    The configuration holds more: groups that no stage of the strategy refers to, such as `rank` where nothing is
    compressed, or a teacher that nobody asks.
    """
    strategy, config = experiment.strategy, experiment.config
    keys = [*_DETERMINING, *(("teacher", "teacher_fit") if strategy.needs_teacher else ())]
    return repr((strategy.name, dict(strategy.stages), [config[key] for key in keys]))


def run_once(
    jobs: Sequence[Sequence[str]], identities: Sequence[str], compose: Callable[[list[str], str], Any]
) -> list[Once]:
    """The jobs that stand for several: a key does not concern a job where all that differ in it alone are one run.

    Args:
        jobs: overrides of each job.
        identities: of each job, see `identity`.
        compose: makes a job of overrides; None where its identity is another than the one that is given.
    """
    varying = varying_keys(jobs)
    free = _free_keys(jobs, identities, varying)
    members: dict[tuple[str, ...], list[int]] = {}
    for position, job in enumerate(jobs):
        kept = tuple(_lines(job, [key for key, _ in map(_split, job) if key not in free[position]]))
        members.setdefault(kept, []).append(position)
    found = []
    for kept, positions in members.items():
        if len(positions) == 1 or len({identities[position] for position in positions}) > 1:
            continue
        job = compose([*kept], identities[positions[0]])
        if job is not None:
            names = tuple(job_name(jobs[position], varying) for position in positions)
            members_of = tuple(job_key(jobs[position]) for position in positions)
            found.append(Once(job_name(kept, varying) or _SINGLE, job, members_of, names))
    return found


def job_name(job: Sequence[str], varying: Collection[str]) -> str:
    """What tells a job from the others of its sweep, as Hydra writes it."""
    return ",".join(sorted(_lines(job, varying)))


def job_key(job: Sequence[str]) -> frozenset[str]:
    """All that a job's overrides set in its configuration: what a sweeper adds makes another job of it."""
    return frozenset(task_lines(job))


def task_lines(job: Sequence[str]) -> list[str]:
    """The overrides of a job that are not about Hydra itself, as Hydra's sweepers write them: `true` is `True`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    lines = _lines(job, [key for key, _ in map(_split, job) if not key.startswith(OF_HYDRA)])
    parsed = OverridesParser.create().parse_overrides(lines)
    return [f"{each.get_key_element()}={each.get_value_element_as_str()}" for each in parsed]


def _free_keys(
    jobs: Sequence[Sequence[str]], identities: Sequence[str], varying: Sequence[str]
) -> list[set[str]]:
    """Of each job the keys that do not concern it."""
    free: list[set[str]] = [set() for _ in jobs]
    for key in varying:
        alike: dict[frozenset[str], list[int]] = {}
        for position, job in enumerate(jobs):
            rest = frozenset(_lines(job, [other for other, _ in map(_split, job) if other != key]))
            alike.setdefault(rest, []).append(position)
        for positions in alike.values():
            if len(positions) > 1 and len({identities[position] for position in positions}) == 1:
                for position in positions:
                    free[position].add(key)
    return free


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
    for lock in _files_named("run.lock", directory):  # a finished run has none
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
    ours = {frozenset(_lines(job, varying)) for job in jobs}
    keys = {frozenset(key for key, _ in map(_split, lines)) for lines in ours}
    found = {}
    for folder, record in _records(directory):
        if isinstance(record, RunDirectoryError):
            found[str(folder)] = str(record)
        elif record.status == FINISHED or not any(
            frozenset(_lines(record.overrides, of_a_job)) in ours for of_a_job in keys
        ):
            continue
        elif record.status == FAILED and record.error is not None:
            found[str(folder)] = f"{record.error['type']}: {record.error['message']}"
        else:
            found[str(folder)] = _LEFT
    return found


def _records(directory: Path) -> Iterator[tuple[Path, Record | RunDirectoryError]]:
    for path in _files_named("record.json", directory):
        try:
            yield path.parent, read_record(path.parent)
        except RunDirectoryError as error:
            yield path.parent, error


def _files_named(name: str, directory: Path) -> list[Path]:
    # os.walk, as Path.rglob raises where a folder vanishes meanwhile: other processes may be writing there
    return sorted(Path(folder, name) for folder, _, files in os.walk(directory) if name in files)


def _check_lengths(jobs: Sequence[Sequence[str]], varying: Sequence[str]) -> None:
    for job in jobs:
        name = job_name(job, varying)
        if any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
            raise RunDirectoryError(
                f"a job's folder cannot be named after all that varies ({len(name)} characters: {name[:40]}...); "
                "write hydra.sweep.subdir='${hydra.job.num}', or vary less at once"
            )


def _changes_nothing(key: str) -> bool:
    """Whether a key only says where results go, who follows them and how jobs are started."""
    return key.partition(".")[0] in ("outputs_dir", "tracker") or key.startswith(OF_HYDRA)


def _lines(job: Sequence[str], keys: Collection[str]) -> list[str]:
    """The overrides of a job that are about these keys; of several about one, the last counts."""
    last = {_split(line)[0]: line for line in job}
    return [line for key, line in last.items() if key in keys]


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.lstrip("+~"), value
