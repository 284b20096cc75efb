"""The command line: a first bare word is a verb of ours, everything else is Hydra's."""

from __future__ import annotations

import io
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskd import __version__
from compresskd.run import (
    FAILED,
    FINISHED,
    AlreadyFinished,
    InUse,
    Record,
    RunDirectoryError,
    describe_owner,
    read_record,
)

USAGE_ERROR, FAILURE, INTERRUPT = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A console script lacks the working directory on its path; a user's own `_target_` lives there.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    _outlive_the_reader()
    verbose = "--verbose" in arguments
    arguments = [a for a in arguments if a != "--verbose"]
    try:
        status = _dispatch(arguments)
    except KeyboardInterrupt as error:
        _complain(str(error) or "interrupted")
        status = INTERRUPT
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _complain(_describe(error))
        status = USAGE_ERROR if _is_usage_error(error) else FAILURE
    sys.exit(status)


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


def _outlive_the_reader() -> None:
    if sys.stdout is not sys.__stdout__ or sys.stdout is None or sys.stdout.isatty():
        return
    sys.stdout.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Unbreakable(sys.stdout.fileno(), "w", closefd=False)),
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
        line_buffering=bool(sys.stdout.line_buffering),
    )


def _dispatch(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in VERBS:
        return VERBS[first](arguments[1:])
    if first and first[0] not in "-+~" and "=" not in first:
        return _unknown_verb(first)
    if "--version" in arguments:
        print(f"compresskd {__version__}")
        return 0
    return _hydra(arguments)


def _describe(error: Exception) -> str:
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ") + notes
    if type(error).__module__.startswith("compresskd."):  # an error of ours says all that there is to say
        return f"{error}{notes}"
    return f"{type(error).__name__}: {error}{notes} (--verbose shows where)"


def _is_usage_error(error: Exception) -> bool:
    from compresskd.config.faults import ConfigError

    return isinstance(error, ConfigError | RunDirectoryError)


def _complain(text: str) -> None:
    print(f"compresskd: {text}", file=sys.stderr)


def _unknown_verb(word: str) -> int:
    from compresskd.config.faults import nearest

    _complain(
        f"'{word}' is no verb and no override{nearest(word, VERBS)}; an override is written key=value, "
        "and --help shows the keys"
    )
    return USAGE_ERROR


def _compare(arguments: list[str]) -> int:
    from compresskd import compare

    return compare.main(arguments)


def _resume(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: compresskd resume DIR\n\nGo on with the run in DIR where it stopped.")
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    directory = Path(arguments[0])
    record = read_record(directory)
    if record.status == FINISHED:
        raise AlreadyFinished(f"{directory} is finished; there is nothing to go on with")
    from compresskd.config.build import build_recorded

    _execute(build_recorded(record.config, record.overrides), directory, unique=False)
    return 0


def _bench(arguments: list[str]) -> int:
    from compresskd import bench

    return bench.main(arguments)


_EVALUATE = """usage: compresskd evaluate DIR [STAGE] [data=NAME] [data.KEY=VALUE ...]

Score the model of a finished stage (the last one) again on the test split, and say whether the recorded accuracy is
reproduced; or score it on other data. Exit code 1 where it is not reproduced."""


def _evaluate(arguments: list[str]) -> int:
    about_data = [a for a in arguments if a.startswith(("data=", "data."))]
    names = [a for a in arguments if a not in about_data]
    # a job's folder may have an '=' in its name, a stage may not: what else has one is refused as an override
    changes = about_data + [a for a in names[1:] if "=" in a]
    names = [a for a in names if a not in changes]
    if not 1 <= len(names) <= 2 or names[0].startswith("-"):
        print(_EVALUATE)
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    directory, stage = Path(names[0]), (names[1:] or [None])[0]
    record = read_record(directory)
    from compresskd.config.recorded import data_of
    from compresskd.config.schema import register
    from compresskd.evaluate import evaluate_run

    register()
    data = data_of(record.config, changes)
    trust = tuple({record.config[role]["_target_"].partition(".")[0] for role in ("teacher", "student")})
    verdict = evaluate_run(directory, record, data, stage=stage, trust=trust)
    print(verdict)
    return FAILURE if verdict.reproduced is False else 0


def _hydra(arguments: list[str]) -> int:
    """Check the whole configuration, then let Hydra run it: once, or once for each job of a sweep."""
    from compresskd.config.compose import compose_jobs
    from compresskd.config.faults import ConfigError
    from compresskd.config.flags import read_flags
    from compresskd.config.schema import register
    from compresskd.sweep import naming_overrides

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
    try:
        status = _run_by_hydra(arguments, multirun, prebuilt)
        return _end_sweep(directory, jobs) or status if directory else status
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "the sweep is interrupted, and what ran is saved; go on with: the same command"
        ) from None


def _run_by_hydra(arguments: list[str], multirun: bool, prebuilt: dict[str, Any]) -> int:
    import hydra
    from hydra.errors import HydraException

    from compresskd.config.diagnosis import said
    from compresskd.config.faults import ConfigError, Fault
    from compresskd.config.schema import conf_dir

    failures: list[Exception] = []
    here, threads = os.getpid(), os.environ.get("OMP_NUM_THREADS", "")

    def task(cfg: Any) -> float:
        if os.getpid() != here:
            _outlive_the_reader()
            _use_threads(threads)
        try:
            return _task(cfg, prebuilt)
        except Exception as error:  # a failed job must not stop its siblings; the record has the traceback
            if multirun:
                _complain(_describe(error))
            if os.getpid() == here:
                failures.append(error)
            elif not _left_a_record():
                raise JobFailed(_describe(error)) from None  # Hydra brings it home
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
    from hydra.core.hydra_config import HydraConfig

    try:
        return read_record(Path(HydraConfig.get().runtime.output_dir)).status == FAILED
    except RunDirectoryError:
        return False


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
    from compresskd.compare import summarize_sweep
    from compresskd.sweep import failures, wait_for_others

    wait_for_others(directory, print)
    table = summarize_sweep(directory)
    if table:
        print(table)
    failed = failures(directory, jobs)
    for folder, what in failed.items():
        _complain(f"{folder}: {what}")
    print(f"the sweep is in {directory}")
    return FAILURE if failed else 0


def _task(cfg: Any, prebuilt: dict[str, Any]) -> float:
    """One job: returns the final validation accuracy, which sweepers that optimise can use."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    experiment = prebuilt.get("\n".join(overrides)) or _build(cfg, overrides)
    named = any(o.startswith(("hydra.run.dir=", "hydra.sweep.")) for o in hydra_config.overrides.hydra)
    directory = Path(hydra_config.runtime.output_dir)
    in_sweep = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    try:
        record = _execute(experiment, directory, unique=not named)
    except InUse:
        if not in_sweep:
            raise
        print(f"skipped: {directory} is run by {describe_owner(directory)}")
        return math.nan
    except AlreadyFinished:
        if not in_sweep:
            raise
        record = read_record(directory)
        _check_same_config(directory, record, experiment)
        print(f"skipped: {directory} is finished")
    final = record.stage(record.final)
    return final["metrics"]["validation_accuracy"] if final else math.nan


def _build(cfg: Any, overrides: list[str]) -> Any:
    from compresskd.config.build import build_jobs
    from compresskd.config.compose import Job

    return build_jobs([Job(overrides, "", cfg, [])])[0]


def _execute(experiment: Any, directory: Path, *, unique: bool) -> Any:
    """Run into `directory` and show the table; on Ctrl-C (and SIGTERM, its like) say how to go on."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from compresskd.console import Reporter, configure_logging, stages_table
    from compresskd.environment import keep_freed_memory
    from compresskd.run import open_run, write_text
    from compresskd.training.interrupt import termination_interrupts

    console = Console()
    configure_logging(console)
    keep_freed_memory()
    run = open_run(directory, unique=unique)
    try:
        _check_same_config(run.directory, run.record, experiment)
        reporter = Reporter(console)
        reporter.note(f"{'going on in' if run.resumed else 'writing to'} {run.directory}")
        write_text(
            run.directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(experiment.config)))
        )
        write_text(
            run.directory / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(experiment.overrides)))
        )
        with termination_interrupts():
            record = experiment.run(run, reporter)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted and saved; go on with: compresskd resume {run.directory}"
        ) from None
    except OSError as error:
        error.add_note(
            f"make room, or mend what is wrong there, and go on with: compresskd resume {run.directory}"
        )
        raise
    finally:
        run.close()
    console.print(stages_table(record))
    console.print(f"everything is in {run.directory}", highlight=False, soft_wrap=True)
    return record


def _check_same_config(directory: Path, record: Record | None, experiment: Any) -> None:
    """A run is only gone on with, or taken for done, under the configuration that began it."""
    if record is None:
        return
    from compresskd.config.differences import differences

    now = dict(experiment.config)
    if record.status == FINISHED:
        now["outputs_dir"] = record.config.get("outputs_dir")  # which folder it was begun from says nothing
    changed = differences(record.config, now)
    if changed:
        finished = record.status == FINISHED
        raise RunDirectoryError(
            f"{directory} holds {'a ' if finished else 'an un'}finished run of another configuration "
            f"({'; '.join(changed)}); write another hydra.run.dir=DIR (of a sweep: hydra.sweep.dir=DIR), or "
            + ("remove that folder" if finished else f"go on with: compresskd resume {directory}")
        )


# The first word of a command line that is not Hydra's; each takes the other words and returns the exit code.
VERBS: dict[str, Callable[[list[str]], int]] = {
    "resume": _resume,
    "compare": _compare,
    "evaluate": _evaluate,
    "bench": _bench,
}
