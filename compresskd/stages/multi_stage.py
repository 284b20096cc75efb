"""Progressive reduction of the rank: each student is the next one's teacher.

Step by step as in teacher-assistant distillation (Mirzadeh et al. 2020, arXiv:1902.03393), the assistants being the
student itself at falling tensor-train ranks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import nn

from compresskd.compression.compression import Compression
from compresskd.engine.strategy import Context, Stage, State, score
from compresskd.kd.logits import Temperature
from compresskd.kd.objective import Objective
from compresskd.options import (
    Count,
    Fraction,
    NonNegative,
    OptionError,
    Whole,
    checked,
    faults,
    hints_of,
    one_of,
    raise_all,
    within,
)
from compresskd.stages.fit import Reducing, Which, teachers_of
from compresskd.stages.train_student import train_student


@dataclass(frozen=True)
class Step:
    """What a step of a schedule may say; None takes the schedule's."""

    rank: Count
    alpha: Fraction | None = None
    temperature: Temperature | None = None
    epochs: Whole | None = None
    max_drop: NonNegative | None = None


@dataclass(frozen=True)
class RankStep(Reducing):
    """One step of the ladder: bring the student to a rank, then train it against its predecessor.

    Attributes:
        how: how layers are brought to the rank; its `rank` is the step's.
        init: 'round' starts from the previous student, its trains rounded where errors cost the least (`whitening` of
            `compression`); 'fresh' from new factors of the same shapes.
        teacher: 'previous' is the student of the step before, 'original' the run's teacher, 'both' the mean.
        max_drop: percentage points of validation accuracy, below that of the stage before the schedule, at which
            the step is undone and the schedule ends; None never ends it.
    """

    compression: Compression
    objective: Objective
    epochs: int
    init: str = "round"
    teacher: str = "previous"
    max_drop: float | None = None

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the student of this rank, or the state as it was where the schedule has ended."""
        ended = next((s["name"] for s in context.record.stages if s.get("stopped_early")), None)
        if ended is not None:
            context.details.update(not_run=f"the schedule ended at {ended}", epochs=0)
            return state
        previous = state.student
        student = self._reduced(previous, context)
        train_student(
            student,
            teachers_of(self.teacher, state, previous),
            self.objective,
            context,
            epochs=self.epochs,
        )
        if self.max_drop is not None and self._dropped(student, context):
            context.reporter.note(
                f"{context.stage}: {context.data.task.monitor.name} fell too far; the schedule ends here"
            )
            context.details["stopped_early"] = True
            return state
        return replace(state, student=student)

    def _reduced(self, previous: nn.Module, context: Context) -> nn.Module:
        student = copy.deepcopy(previous) if self.init == "round" else context.reference()
        init = "decomposed" if self.init == "round" else "random"
        replaced = self.compression.apply(student, context, init=init)
        context.details.update(layers=replaced.layers, skipped=replaced.skipped)
        return student

    def _dropped(self, student: nn.Module, context: Context) -> bool:
        before = [s for s in context.record.stages if "scheduled_rank" not in s]
        context.details["scheduled_rank"] = self.compression.rank
        if not before or self.max_drop is None:
            return False
        monitor = context.data.task.monitor
        reference = before[-1]["metrics"][f"validation_{monitor.name}"]
        reached = score(student, context.data.validation, context).monitored
        context.details[f"validation_{monitor.name}_reached"] = reached
        return monitor.drop(reference, reached) > self.max_drop


@checked
@dataclass(frozen=True)
class MultiStage:
    """A schedule of falling ranks, expanded into one `RankStep` a step.

    Attributes:
        stages: mappings with `rank` and, where they differ from the defaults, `alpha`, `temperature`, `epochs`,
            `max_drop`. Ranks must fall from step to step.
        epochs: of each step that says nothing.
        compression: as in `RankStep`; its rank is replaced by each step's.

    Raises:
        OptionError: for a step with an unknown key or a rank that does not fall.
    """

    stages: Sequence[Mapping[str, Any]]
    objective: Objective
    epochs: Whole
    compression: Compression
    init: Annotated[str, one_of("round", "fresh")] = "round"
    teacher: Which = "previous"

    def __post_init__(self) -> None:
        for target in ("tolerance", "energy", "budget", "max_drop"):
            if getattr(self.compression, target) is not None:
                got = getattr(self.compression, target)
                raise OptionError(f"compression.{target}", got, "null beside a schedule of ranks")
        if not self.stages:
            raise OptionError("stages", self.stages, "at least one {rank: R}")
        for position, step in enumerate(self.stages):
            with within(f"stages[{position}]"):
                known = hints_of(Step)
                raise_all(
                    OptionError(key, step[key], f"one of {', '.join(known)}")
                    for key in step
                    if key not in known
                )
                raise_all(faults(Step, {"rank": None, **step}))
        ranks = [step["rank"] for step in self.stages]
        if any(below >= above for above, below in itertools.pairwise(ranks)):
            raise OptionError("stages", ranks, "ranks that fall from step to step")

    def expand(self, name: str) -> dict[str, Stage]:
        """The steps as stages of their own, each recorded by itself."""
        made: dict[str, Stage] = {}
        for i, step in enumerate(self.stages):
            with within(f"stages[{i}]"):
                made[f"{name}_{i + 1}_r{step['rank']}"] = self._step(step)
        return made

    def _step(self, step: Mapping[str, Any]) -> RankStep:
        objective = self.objective
        if step.get("alpha") is not None or step.get("temperature") is not None:
            objective = objective.reweighted(alpha=step.get("alpha"), temperature=step.get("temperature"))
        epochs = self.epochs if step.get("epochs") is None else step["epochs"]
        return RankStep(
            replace(self.compression, rank=step["rank"]),
            objective,
            epochs,
            self.init,
            self.teacher,
            step.get("max_drop"),
        )
