"""One experiment into its directory, with what a person sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compresskd.run import FINISHED, Record, RunDirectoryError


def execute(experiment: Any, directory: Path, *, unique: bool, watch: Any = None) -> Any:
    """Run into `directory` and show the table; on Ctrl-C (and SIGTERM, its like) say how to go on.

    watch: a listener that follows the run in place of a person: then nothing is shown.
    """
    from omegaconf import OmegaConf
    from rich.console import Console

    from compresskd.distributed import ProcessLost
    from compresskd.engine.environment import keep_freed_memory
    from compresskd.listeners.console import Reporter, configure_logging, stages_table
    from compresskd.listeners.several import Several
    from compresskd.listeners.tracked import Tracked
    from compresskd.run import open_run
    from compresskd.training.interrupt import termination_interrupts

    console = Console(quiet=watch is not None)
    configure_logging(console)
    keep_freed_memory()
    run = open_run(directory, unique=unique)
    try:
        check_same_config(run.directory, run.record, experiment)
        reporter = Reporter(console)
        reporter.note(f"{'resuming in' if run.resumed else 'writing to'} {run.directory}")
        texts = {
            "config.yaml": OmegaConf.to_yaml(OmegaConf.create(dict(experiment.config))),
            "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(list(experiment.overrides))),
        }
        with termination_interrupts():
            trackers = Tracked(experiment.trackers, reporter.note)
            listeners = (reporter, trackers) if watch is None else (reporter, trackers, watch)
            record = experiment.run(run, Several(listeners), texts)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted and saved; resume it by: compresskd resume {run.directory}"
        ) from None
    except ProcessLost as error:
        error.add_note(f"resume it by: compresskd resume {run.directory}")
        raise
    except OSError as error:
        error.add_note(
            f"make room, or mend what is wrong there, and resume it by: compresskd resume {run.directory}"
        )
        raise
    finally:
        run.close()
    console.print(stages_table(record))
    console.print(f"everything is in {run.directory}", highlight=False, soft_wrap=True)
    return record


def check_same_config(directory: Path, record: Record | None, experiment: Any) -> None:
    """A run is only resumed, or taken for done, under the configuration that began it."""
    if record is None:
        return
    from compresskd.config.recorded import differences

    then = record.config
    # a run is resumed with any number of processes, and with any tracker
    now = {**dict(experiment.config), "processes": then.get("processes"), "tracker": then.get("tracker")}
    if record.status == FINISHED:
        now["outputs_dir"] = then.get("outputs_dir")  # which folder it was begun from says nothing
    changed = differences(then, now)
    if changed:
        finished = record.status == FINISHED
        raise RunDirectoryError(
            f"{directory} holds {'a ' if finished else 'an un'}finished run of another configuration "
            f"({'; '.join(changed)}); write another hydra.run.dir=DIR (of a sweep: hydra.sweep.dir=DIR), or "
            + ("remove that folder" if finished else f"resume it by: compresskd resume {directory}")
        )
