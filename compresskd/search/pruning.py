"""Which trials are given up in the middle: Optuna's median rule (Golovin et al. 2017, section 3.2.1).

Strategies have other stages, and their epochs cannot be told apart by a number: each stage of each strategy has a
study of its own, and a trial is compared with the trials that were in the same stage.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compresskd.metric import Metric
from compresskd.search.sampler import imported

STARTUP, WARMUP = 4, 1  # trials that are never given up; epochs of a stage in which none is


@dataclass
class Pruning:
    """Judges epochs by the metric that is made best."""

    metric: Metric
    _studies: dict[tuple[str, str], Any] = field(default_factory=dict)
    _open: dict[tuple[int, str, str], Any] = field(default_factory=dict)

    def report(self, number: int, strategy: str, stage: str, epoch: int, value: float) -> bool:
        """Take one epoch of a trial; whether the trial is to be given up."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._trial(number, strategy, stage)
            trial.report(value, epoch)
            return bool(trial.should_prune())

    def end(self, number: int, lines: Iterable[Mapping[str, Any]], strategy: str, *, complete: bool) -> None:
        """Take how a trial went, by the lines of its metrics.jsonl; those of one that ended early judge no others."""
        states = imported().trial.TrialState
        last: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for line in lines:
                value = line.get(f"validation_{self.metric.name}")
                if value is not None:
                    self._trial(number, strategy, line["stage"]).report(value, line["epoch"])
                    last[line["stage"]] = value
            for stage, value in last.items():
                study, trial = self._study(strategy, stage), self._open.pop((number, strategy, stage))
                study.tell(trial, value if complete else None, state=None if complete else states.PRUNED)

    def _trial(self, number: int, strategy: str, stage: str) -> Any:
        key = number, strategy, stage
        if key not in self._open:
            self._open[key] = self._study(strategy, stage).ask()
        return self._open[key]

    def _study(self, strategy: str, stage: str) -> Any:
        optuna = imported()
        if (strategy, stage) not in self._studies:
            direction = "maximize" if self.metric.higher_is_better else "minimize"
            pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP)
            self._studies[strategy, stage] = optuna.create_study(direction=direction, pruner=pruner)
        return self._studies[strategy, stage]
