"""The command line: a first bare word is a verb of ours, everything else is Hydra's."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compresskd.run import FINISHED, RunDirectoryError

USAGE_ERROR, FAILURE, INTERRUPT = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process with 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A console script lacks the working directory on its path; a user's own `_target_` lives there.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    verbose = "--verbose" in arguments
    arguments = [a for a in arguments if a != "--verbose"]
    verbs: dict[str, Callable[[list[str]], int]] = {"resume": _resume, "compare": _compare}
    try:
        if arguments and arguments[0] in verbs:
            status = verbs[arguments[0]](arguments[1:])
        elif (
            arguments
            and not arguments[0].startswith("-")
            and "=" not in arguments[0]
            and arguments[0][0] not in "+~"
        ):
            status = _unknown_verb(arguments[0], verbs)
        else:
            status = _hydra(arguments, verbose=verbose)
    except KeyboardInterrupt as error:
        _complain(str(error) or "interrupted")
        status = INTERRUPT
    except Exception as error:
        if verbose:
            traceback.print_exc()
        _complain(_describe(error))
        status = USAGE_ERROR if _is_usage_error(error) else FAILURE
    sys.exit(status)


def _describe(error: Exception) -> str:
    if _is_usage_error(error) or isinstance(error, RunDirectoryError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or ''}".rstrip(": ")
    return f"{type(error).__name__}: {error} (--verbose shows where)"


def _is_usage_error(error: Exception) -> bool:
    from compresskd.config.faults import ConfigError

    return isinstance(error, ConfigError)


def _complain(text: str) -> None:
    print(f"compresskd: {text}", file=sys.stderr)


def _unknown_verb(word: str, verbs: Any) -> int:
    from compresskd.config.faults import nearest

    _complain(f"'{word}' is no verb and no override{nearest(word, verbs)}; an override is written key=value")
    return USAGE_ERROR


def _compare(arguments: list[str]) -> int:
    from compresskd import compare

    return compare.main(arguments)


def _resume(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: compresskd resume DIR\n\nGo on with the run in DIR where it stopped.")
        return 0 if arguments in (["--help"], ["-h"]) else USAGE_ERROR
    from omegaconf import OmegaConf

    from compresskd.config.build import build, resolve
    from compresskd.run import AlreadyFinished, read_record

    directory = Path(arguments[0])
    record = read_record(directory)
    if record.status == FINISHED:
        raise AlreadyFinished(f"{directory} is finished; there is nothing to go on with")
    experiment = build(resolve(OmegaConf.create(record.config)), record.overrides)
    _execute(experiment, directory, unique=False)
    return 0


def _hydra(arguments: list[str], *, verbose: bool) -> int:
    """Check the whole configuration, then let Hydra run it: once, or once for each job of a sweep."""
    import hydra
    from hydra._internal.utils import get_args_parser

    from compresskd.config.build import build, resolve
    from compresskd.config.compose import compose_jobs
    from compresskd.config.schema import conf_dir, register

    flags = get_args_parser().parse_args(arguments)
    config_dirs = [Path(flags.config_dir)] if flags.config_dir else []
    register(*config_dirs)
    prebuilt: dict[str, Any] = {}
    asks_only = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    if not (asks_only or flags.config_path or flags.config_name):
        jobs = compose_jobs(flags.overrides, config_dirs=config_dirs, multirun=flags.multirun)
        _check_outputs(flags.overrides, jobs[0][1].outputs_dir)
        built = {"|".join(job): build(resolve(cfg), job) for job, cfg in jobs}
        # Jobs of a sweep may run in other processes, which build their own.
        prebuilt = {} if flags.multirun else built

    failures: list[Exception] = []

    def task(cfg: Any) -> float:
        try:
            return _task(cfg, prebuilt)
        except Exception as error:  # a failed job must not stop its siblings; the record has the traceback
            failures.append(error)
            _complain(_describe(error))
            return math.nan

    old_argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    finally:
        sys.argv = old_argv
    if failures and not flags.multirun:
        if verbose:
            traceback.print_exception(failures[0])
        return USAGE_ERROR if _is_usage_error(failures[0]) else FAILURE
    return FAILURE if failures else 0


def _check_outputs(overrides: Sequence[str], outputs_dir: str) -> None:
    """Refuse, before anything is trained, a folder that cannot be written."""
    import tempfile

    chosen = [o.partition("=")[2] for o in overrides if o.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    for folder in map(Path, chosen or [outputs_dir]):
        existing = next(p for p in [folder.absolute(), *folder.absolute().parents] if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write to {folder}: {error.strerror or error}; write another outputs_dir=DIR"
            ) from error


def _task(cfg: Any, prebuilt: dict[str, Any]) -> float:
    """One job: returns the final validation accuracy, which sweepers that optimise can use."""
    from hydra.core.hydra_config import HydraConfig

    from compresskd.config.build import build, resolve

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    experiment = prebuilt.get("|".join(overrides)) or build(resolve(cfg), overrides)
    named = any(o.startswith(("hydra.run.dir=", "hydra.sweep.")) for o in hydra_config.overrides.hydra)
    record = _execute(experiment, Path(hydra_config.runtime.output_dir), unique=not named)
    final = record.stage(record.final)
    return final["metrics"]["validation_accuracy"] if final else math.nan


def _execute(experiment: Any, directory: Path, *, unique: bool) -> Any:
    """Run into `directory` and show the table; on Ctrl-C (and SIGTERM, its like) say how to go on."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from compresskd.console import Reporter, configure_logging, stages_table
    from compresskd.run import open_run, write_text
    from compresskd.training.interrupt import termination_interrupts

    console = Console()
    configure_logging(console)
    run = open_run(directory, unique=unique)
    try:
        _check_same_config(run, experiment)
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
    finally:
        run.close()
    console.print(stages_table(record))
    console.print(f"everything is in {run.directory}", highlight=False, soft_wrap=True)
    return record


def _check_same_config(run: Any, experiment: Any) -> None:
    """An unfinished run is only gone on with under the configuration that began it."""
    if run.record is None:
        return
    from compresskd.config.build import differences

    changed = differences(run.record.config, dict(experiment.config))
    if changed:
        raise RunDirectoryError(
            f"{run.directory} holds an unfinished run of another configuration ({'; '.join(changed)}); "
            "write another hydra.run.dir=DIR, or go on with: compresskd resume DIR"
        )
