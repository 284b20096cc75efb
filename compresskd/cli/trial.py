"""One run of a search: composed, built and executed, while nobody looks but the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskd.cli.endings import describe
from compresskd.cli.execute import check_same_config, execute
from compresskd.engine.events import Pruned
from compresskd.listeners.several import Silent
from compresskd.run import AlreadyFinished, InUse, open_run, read_record
from compresskd.training import EpochRecord

Judge = Callable[
    [str, str, int, float], bool
]  # strategy, stage, epoch, metric -> whether to give the trial up
Say = Callable[[str], None]


@dataclass(frozen=True)
class Composer:
    """Makes experiments of lines of overrides.

    Attributes:
        config_dirs: searched besides the shipped configuration.
        trust: packages whose code may run; None where the user has typed the lines.
        shared: what experiments have in common, such as data that is loaded once.
    """

    config_dirs: tuple[Path, ...] = ()
    trust: tuple[str, ...] | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def job(self, lines: Sequence[str]) -> Any:
        """The composed job of these lines.

        Raises:
            ConfigError: it does not compose.
        """
        from compresskd.config.compose import compose_jobs

        return compose_jobs(lines, config_dirs=self.config_dirs).jobs[0]

    def experiments(self, lines: Sequence[Sequence[str]]) -> list[Any]:
        """The experiments of several jobs.

        Raises:
            ConfigError: with the faults of all.
        """
        from compresskd.config.build import build_jobs

        jobs = [replace(self.job(each), name=" ".join(each)) for each in lines]
        return build_jobs(jobs, self.shared, trust=self.trust)

    def experiment(self, lines: Sequence[str]) -> Any:
        """The experiment of one."""
        return self.experiments([lines])[0]


@dataclass(frozen=True)
class Order:
    """A run that is to be done.

    Attributes:
        lines: its overrides.
        search: what its record says of the search.
        metric: whose epochs are judged; empty where none are.
        key: by which whoever gave the order knows it.
        experiment: built of the lines already, or None.
    """

    directory: Path
    lines: tuple[str, ...]
    search: Mapping[str, Any]
    metric: str = ""
    key: Any = None
    experiment: Any = None


def carry_out(order: Order, composer: Composer, judge: Judge, say: Say) -> str:
    """Run it; why it failed, nothing where it did not, or where its record tells. Ctrl-C is let through."""
    try:
        experiment = order.experiment or composer.experiment(order.lines)
        watch = _Watch(order.metric, experiment.strategy.name, judge, say)
        _run(replace(experiment, search=dict(order.search)), order.directory, watch)
    except Pruned:
        pass
    except Exception as error:
        return describe(error)
    return ""


def _run(experiment: Any, directory: Path, watch: Any) -> None:
    try:
        execute(experiment, directory, unique=False, watch=watch)
    except AlreadyFinished:
        check_same_config(directory, read_record(directory), experiment)
    except InUse:  # the process of a search that was killed has not ended yet
        try:
            open_run(directory, wait=-1).close()
        except AlreadyFinished:
            return
        _run(experiment, directory, watch)


class _Watch(Silent):
    """Has each epoch judged, and tells what there is to tell of a teacher that is being trained."""

    def __init__(self, metric: str, strategy: str, judge: Judge, say: Say):
        self._metric, self._strategy, self._judge, self._say = metric, strategy, judge, say
        self._stage = ""

    def note(self, text: str) -> None:
        """A teacher that has to be trained, or waited for, takes time that the user sees nothing of."""
        if text.startswith(("teacher: training", "teacher: resuming")):
            self._say(text)

    def stage(self, name: str, number: int, total: int) -> None:
        """Note the stage that epochs are of."""
        self._stage = name

    def epoch(self, epoch: EpochRecord, epochs: int) -> None:
        """Have it judged."""
        value = epoch.validation.get(self._metric)
        if value is not None and self._judge(self._strategy, self._stage, epoch.epoch, value):
            raise Pruned(
                f"stage {self._stage}, epoch {epoch.epoch + 1}: {self._metric} {value:.4g} is behind the median of the "
                "trials before"
            )
