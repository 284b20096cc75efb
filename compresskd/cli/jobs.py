"""Hydra's command line: one run, or a sweep of them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from compresskd.cli.endings import FAILURE, complain, describe, outlive_the_reader
from compresskd.cli.execute import check_same_config, execute
from compresskd.cli.workers import KILLED, Watch, busy, record_loss
from compresskd.run import (
    FAILED,
    AlreadyFinished,
    InUse,
    RunDirectoryError,
    describe_owner,
    read_record,
)


def run_hydra(arguments: list[str]) -> int:
    """Check the whole configuration, then let Hydra run it: once, or once for each job of a sweep."""
    from compresskd.cli.sweep import check_folder, naming_overrides
    from compresskd.config.compose import compose_jobs
    from compresskd.config.faults import ConfigError
    from compresskd.config.flags import read_flags
    from compresskd.config.schema import register

    flags = read_flags(arguments)
    register(*flags.searched)
    prebuilt: dict[str, Any] = {}
    naming: list[str] = []
    jobs: list[list[str]] = []
    config: Mapping[str, Any] = {}
    multirun = flags.multirun
    # Another primary configuration is composed by Hydra alone, and checked by each job before it trains.
    if not flags.config_path and (flags.shows_config or not flags.informs):
        plan = compose_jobs(
            flags.overrides,
            config_dirs=flags.config_dirs,
            config_name=flags.config_name,
            multirun=flags.multirun,
        )
        if flags.informs:
            faults = [fault for job in plan.jobs for fault in job.faults]
            if faults:
                raise ConfigError(faults)
        else:
            from compresskd.config.build import build_jobs

            experiments = build_jobs(plan.jobs)
            multirun = plan.multirun
            if multirun:  # jobs may run in other processes, which build their own
                jobs = [job.overrides for job in plan.jobs]
                config = experiments[0].config
                naming = naming_overrides(jobs, flags.overrides, config["outputs_dir"])
            else:
                prebuilt = {"\n".join(plan.jobs[0].overrides): experiments[0]}
    arguments = [*naming, *flags.arguments]
    if not multirun:
        return _run_by_hydra(arguments, multirun, prebuilt)
    directory = _sweep_folder(arguments, config)
    if directory:
        check_folder(directory)
    try:
        status = _run_sweep(arguments)
        return _end_sweep(directory, jobs) or status if directory else status
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the sweep is interrupted, and what ran is saved; resume it by: the same command"
        ) from None


def _run_sweep(arguments: list[str]) -> int:
    """Let Hydra run all jobs; a worker process that is killed loses its own job, and the others are started again."""
    lost: set[Path] = set()
    while True:
        with Watch() as watch:
            try:
                return _run_by_hydra(arguments, True, {}, watch.notes, frozenset(lost)) or bool(lost)
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
    notes: str = "",
    lost: frozenset[Path] = frozenset(),
) -> int:
    """Call Hydra; see `workers.busy` for `notes`; jobs of the directories in `lost` are not run."""
    import hydra
    from hydra.errors import HydraException

    from compresskd.config.explain import said
    from compresskd.config.faults import ConfigError, Fault
    from compresskd.config.schema import conf_dir

    failures: list[Exception] = []
    here, threads = os.getpid(), os.environ.get("OMP_NUM_THREADS", "")

    def task(cfg: Any) -> float:
        if os.getpid() != here:
            outlive_the_reader()
            _use_threads(threads)
        try:
            if os.getpid() == here:
                return _task(cfg, prebuilt)
            directory = _output_directory()
            with busy(notes, directory):
                return math.nan if directory in lost else _task(cfg, prebuilt)
        except Exception as error:  # a failed job must not stop its siblings; the record has the traceback
            if multirun:
                complain(describe(error))
            if os.getpid() == here:
                failures.append(error)
            elif not _left_a_record():
                raise JobFailed(describe(error)) from None  # Hydra brings it home
            return math.nan

    old_argv, old_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are told in one place: here
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except HydraException as error:  # a primary configuration of the user's own, which Hydra alone composes
        raise ConfigError([Fault("", said(error))]) from error
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
    """Use as many threads as the user said by OMP_NUM_THREADS; joblib shares the cores among its processes else.

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


def _sweep_folder(arguments: Sequence[str], config: Mapping[str, Any]) -> Path | None:
    """Where the sweep is, by the last word on it; None where nothing was said, or only Hydra can tell."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    said = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("hydra.sweep.dir=")]
    try:
        return Path(OmegaConf.create({**config, "said": said}).said[-1]) if said else None
    except OmegaConfBaseException:
        return None


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


def _task(cfg: Any, prebuilt: dict[str, Any]) -> float:
    """One job: returns the final validation accuracy, which sweepers that optimise can use."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    experiment = prebuilt.get("\n".join(overrides)) or _build(cfg, overrides)
    named = any(o.startswith(("hydra.run.dir=", "hydra.sweep.")) for o in hydra_config.overrides.hydra)
    directory = _output_directory()
    in_sweep = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    try:
        record = execute(experiment, directory, unique=not named)
    except InUse:
        if not in_sweep:
            raise
        print(f"skipped: {directory} is run by {describe_owner(directory)}")
        return math.nan
    except AlreadyFinished:
        if not in_sweep:
            raise
        record = read_record(directory)
        check_same_config(directory, record, experiment)
        print(f"skipped: {directory} is finished")
    final = record.stage(record.final)
    return final["metrics"]["validation_accuracy"] if final else math.nan


def _build(cfg: Any, overrides: list[str]) -> Any:
    from compresskd.config.build import build_jobs
    from compresskd.config.compose import Job

    return build_jobs([Job(overrides, "", cfg, [])])[0]
