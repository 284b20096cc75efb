"""Hydra's command line: one run, or a sweep of them."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskd.cli.endings import FAILURE, complain, describe, outlive_the_reader
from compresskd.cli.execute import check_same_config, execute
from compresskd.cli.follow import is_one_of_several
from compresskd.cli.front import check_untrained, points_of, run_front
from compresskd.cli.sweep import (
    FOLDER_OF,
    OF_HYDRA,
    Once,
    check_folder,
    identity,
    job_key,
    naming_overrides,
    run_once,
    task_lines,
)
from compresskd.cli.workers import KILLED, Watch, busy, record_loss
from compresskd.run import (
    FAILED,
    FINISHED,
    RECORD,
    AlreadyFinished,
    InUse,
    RunDirectoryError,
    describe_owner,
    read_record,
)
from compresskd.targets.paths import with_here, without_here

_MOST_TOLD = 5  # names in one line


@dataclass(frozen=True)
class Sweep:
    """What is settled of a sweep before its first job runs.

    Attributes:
        naming: overrides that name its folder and those of its jobs.
        directory: its folder; None where only Hydra can tell.
        jobs: overrides of each job that is run.
        once: by the key of a job, the one that stands for it.
    """

    naming: list[str] = field(default_factory=list)
    directory: Path | None = None
    jobs: list[list[str]] = field(default_factory=list)
    once: dict[frozenset[str], Once] = field(default_factory=dict)


def run_hydra(arguments: Namespace) -> int:
    """Check the whole configuration, then let Hydra run it: once, or once for each job of a sweep."""
    with _uncollected():
        from compresskd.config.compose import compose_jobs
        from compresskd.config.faults import ConfigError, Fault
        from compresskd.config.schema import register

    overrides, flags = arguments.overrides, list(arguments.typed)
    for line in overrides:  # Hydra takes none after a flag that follows another
        flags.remove(line)
    config_dirs = [Path(arguments.config_dir)] if arguments.config_dir else []
    register(*config_dirs)
    prebuilt: dict[str, Any] = {}
    sweep, multirun = Sweep(), arguments.multirun or "hydra.mode=MULTIRUN" in overrides
    shows = bool(arguments.cfg or arguments.info)
    # Another primary configuration is composed by Hydra alone, and checked by each job before it trains.
    if not (arguments.config_path or arguments.hydra_help or arguments.shell_completion):
        compose = functools.partial(compose_jobs, config_dirs=config_dirs, config_name=arguments.config_name)
        plan = compose(overrides, multirun=multirun)
        if plan.multirun and not shows and is_one_of_several():
            number = os.environ["WORLD_SIZE"]
            text = f"torchrun runs one job; write compresskd -m processes={number} without it"
            raise ConfigError([Fault("processes", text)])
        if shows:
            faults = [fault for job in plan.jobs for fault in job.faults]
            if faults:
                raise ConfigError(faults)
        else:
            with _uncollected():
                from compresskd.config.build import build_jobs

            build = functools.partial(build_jobs, shared={})
            multirun = plan.multirun
            jobs = plan.jobs if multirun else [_without_hydra(plan.jobs[0])]
            points = {} if multirun else points_of(jobs[0])
            experiments = build(list(points.values()) or jobs)
            if points:
                check_untrained(experiments)
            if multirun:  # jobs may run in other processes, which build their own
                sweep = _settle(plan, experiments, compose, build)
            else:
                made = dict(zip(points, experiments, strict=True)) if points else experiments[0]
                prebuilt = {"\n".join(jobs[0].overrides): made}
    if not multirun:
        return _run_by_hydra([*overrides, *flags], multirun, prebuilt, sweep)
    if sweep.directory:
        check_folder(sweep.directory)
    try:
        status = _run_sweep([*overrides, *sweep.naming, *flags], sweep)
        return _end_sweep(sweep.directory, sweep.jobs) or status if sweep.directory else status
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the sweep is interrupted, and what ran is saved; resume it by: the same command"
        ) from None


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """For imports: what they make stays, and looking through it for garbage takes a tenth of their time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _without_hydra(job: Any) -> Any:
    """The job with the overrides that Hydra counts as its task's, by which it is found when Hydra runs it."""
    return replace(job, overrides=[line for line in job.overrides if not line.startswith(OF_HYDRA)])


def _settle(
    plan: Any, experiments: Sequence[Any], compose: Callable[..., Any], build: Callable[..., Any]
) -> Sweep:
    """Name the sweep, and find the jobs that stand for several, where all have been looked at."""
    from compresskd.config.faults import ConfigError
    from hydra_plugins.compresskd_sweeper import Planned

    lines, are_all = plan.lines, len(plan.jobs) == len(plan.lines)
    named, outputs_dir = plan.jobs[0].sweep, experiments[0].config["outputs_dir"]
    if not are_all:
        print(f"{len(lines):,} jobs: {len(plan.jobs)} of them are checked, each of the others before it runs")

    def composed(overrides: list[str], expected: str) -> Any:
        try:
            job = compose(overrides).jobs[0]
            return job if identity(build([job])[0]) == expected else None
        except ConfigError:
            return None

    once = run_once(lines, [identity(experiment) for experiment in experiments], composed) if are_all else []
    naming = naming_overrides(lines, named, outputs_dir, once)
    written = [named["dir"]] if "dir" in named else [n.partition("=")[2].strip("'") for n in naming[:1]]
    directory = Path(written[0]) if "${" not in written[0] else None
    if "dir" in named and directory is not None:  # as it was resolved here: a time of day goes on
        naming.append("hydra.sweep.dir='{}'".format(named["dir"].replace("'", "\\'")))
    if plan.basic:
        Planned.jobs = [task_lines(job) for job in lines]
        naming.append(f"hydra.sweeper._target_={Planned.__module__}.{Planned.__name__}")
    members = {key: each for each in once for key in each.members}
    rest = [job for job in lines if job_key(job) not in members]
    if once:
        told = "; ".join(each.folder for each in once[:_MOST_TOLD])
        more = f"; and {len(once) - _MOST_TOLD} more" if len(once) > _MOST_TOLD else ""
        count = f"{len(members)} jobs are {len(once)}"
        print(f"{count}, run once: what varies among them does not concern them ({told}{more})")
    return Sweep(naming, directory, [*rest, *(each.job.overrides for each in once)], members)


def _run_sweep(arguments: list[str], sweep: Sweep) -> int:
    """Let Hydra run all jobs; a worker process that is killed loses its own job, and the others are started again."""
    lost: set[Path] = set()
    while True:
        with Watch() as watch:
            try:
                return _run_by_hydra(arguments, True, {}, sweep, watch.notes, frozenset(lost)) or bool(lost)
            except BrokenExecutor:
                found = watch.lost() - lost
                if not found:
                    raise
        for directory in found:
            record_loss(directory)
            complain(f"{directory}: {KILLED}; the other jobs go on")
        lost |= found


def _run_by_hydra(
    arguments: list[str],
    multirun: bool,
    prebuilt: dict[str, Any],
    sweep: Sweep,
    notes: str = "",
    lost: frozenset[Path] = frozenset(),
) -> int:
    """Call Hydra; see `workers.busy` for `notes`; jobs of the directories in `lost` are not run."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from compresskd.config.faults import ConfigError, Fault, said
    from compresskd.config.shipped import conf_dir

    failures: list[Exception] = []
    here, threads = os.getpid(), os.environ.get("OMP_NUM_THREADS", "")

    def task(cfg: Any) -> float:
        if os.getpid() != here:
            outlive_the_reader()
            _use_threads(threads)
        try:
            with with_here():
                if os.getpid() == here:
                    return _task(cfg, prebuilt, sweep)
                directory = _output_directory()
                with busy(notes, directory):
                    return math.nan if directory in lost else _task(cfg, prebuilt, sweep)
        except Exception as error:  # a failed job must not stop its siblings; the record has the traceback
            if multirun:
                complain(describe(error))
            if os.getpid() == here:
                failures.append(error)
            elif not _left_a_record():
                raise JobFailed(describe(error)) from None  # Hydra brings it home
            return math.nan

    OmegaConf.register_new_resolver(FOLDER_OF, _folders(sweep), replace=True)
    old_argv, old_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are told in one place: here
    try:
        with without_here():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except HydraException as error:  # a primary configuration of the user's own, which Hydra alone composes
        raise ConfigError([Fault("", said(error))]) from error
    except (
        OSError,
        RecursionError,
    ) as error:  # Hydra makes the folder; of a job's own errors none comes here
        reason = getattr(error, "strerror", None) or error
        text = f"cannot be written ({reason}); write another outputs_dir=DIR or hydra.run.dir=DIR"
        raise ConfigError([Fault("outputs_dir", text)]) from error
    except JobFailed as error:
        failures.append(error)
    finally:
        sys.argv = old_argv
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({"HYDRA_FULL_ERROR": old_full} if old_full is not None else {})
    if failures and not multirun:
        raise failures[0]
    return FAILURE if failures else 0


def _use_threads(number: str) -> None:
    """Use the number of threads in OMP_NUM_THREADS; otherwise joblib divides the cores among its workers.

    It sets MKL_NUM_THREADS too, which for torch comes before the other.
    """
    if number.isdigit():
        import torch

        torch.set_num_threads(int(number))


class JobFailed(RuntimeError):
    """A job failed in another process, which has said so, without a record that could tell."""


def _left_a_record() -> bool:
    """Whether the record of the job that has just failed says so, and so will the end of the sweep."""
    try:
        return read_record(_output_directory()).status == FAILED
    except RunDirectoryError:
        return False


def _output_directory() -> Path:
    """Where Hydra wants the results of the job that is running."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def _folders(sweep: Sweep) -> Callable[[str], str]:
    """From the name of a job to its folder in the sweep's."""
    folders = {name: each.folder for each in sweep.once.values() for name in each.names}
    return lambda name: folders.get(name, name)


def _end_sweep(directory: Path, jobs: list[list[str]]) -> int:
    """Compare the jobs of a sweep in its folder, and list every one that failed."""
    from compresskd.cli.sweep import failures, wait_for_others
    from compresskd.compare import summarize_sweep

    wait_for_others(directory, print)
    table = summarize_sweep(directory)
    if table:
        print(table)
    failed = failures(directory, jobs)
    for folder, what in failed.items():
        complain(f"{folder}: {what}")
    print(f"the sweep is in {directory}")
    return FAILURE if failed else 0


def _task(cfg: Any, prebuilt: dict[str, Any], sweep: Sweep) -> float:
    """One job: returns the metric that selects, on validation, which sweepers that optimise can use."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    directory = _output_directory()
    key = job_key(overrides)
    once = sweep.once.get(key)
    if once is not None and key != once.members[0] and _is_taken(directory, once):
        return _objective(directory)
    experiment = prebuilt.get("\n".join(overrides)) or _build(cfg, overrides, once)
    if isinstance(experiment, dict):
        run_front(experiment, directory)
        return math.nan
    named = any(o.startswith(("hydra.run.dir=", "hydra.sweep.")) for o in hydra_config.overrides.hydra)
    in_sweep = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    try:
        execute(experiment, directory, unique=not named)
    except InUse:
        if not in_sweep:
            raise
        print(f"skipped: {directory} is run by {describe_owner(directory)}")
        return math.nan
    except AlreadyFinished:
        if not in_sweep:
            raise
        check_same_config(directory, read_record(directory), experiment)
        print(f"skipped: {directory} is finished")
    return _objective(directory)


def _is_taken(directory: Path, once: Once) -> bool:
    """Whether another job has run, or runs, what this one would; a folder that Hydra made for nothing is removed."""
    if directory.name != once.folder:  # the user's own name
        with contextlib.suppress(OSError):
            directory.rmdir()
        return True
    return (directory / RECORD).exists()


def _objective(directory: Path) -> float:
    try:
        record = read_record(directory)
    except RunDirectoryError:
        return math.nan
    final = record.stage(record.final) if record.status == FINISHED else None
    return final["metrics"][f"validation_{record.monitor.name}"] if final else math.nan


def _build(cfg: Any, overrides: list[str], once: Once | None) -> Any:
    from compresskd.config.build import build_jobs
    from compresskd.config.compose import Job

    return build_jobs([Job(overrides, "", cfg, []) if once is None else once.job])[0]
