"""A dense student of the size that a compression would give: the baseline that a compressed model has to beat."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskd import artifact
from compresskd.compression.compression import Compression
from compresskd.engine.strategy import Context, State
from compresskd.models import hub_shapes
from compresskd.models.build import build, spec_of
from compresskd.models.huggingface import is_of_transformers
from compresskd.options import checked, within
from compresskd.tasks import Inputs

# Constructor options that set the width of an architecture in compresskd; a user's own may use the same names.
_WIDTHS = ("hidden", "width_multiplier")
_STEPS = 40


@checked
@dataclass(frozen=True)
class MatchedDense:
    """Replace the student by a narrower dense one of at most the stored bytes that factorizing would leave.

    Attributes:
        compression: the compression, of the student, whose bytes are matched.

    The student is untrained afterwards, its initial weights following from the run's seed.
    """

    compression: Compression

    @property
    def needs_teacher(self) -> bool:
        """Never: the student is what is matched."""
        return False

    def check(self, state: State, example: Inputs) -> State:
        """See `engine.strategy.Checked`: some layer gets smaller, and the architecture has a width."""
        with within("compression"):
            self.compression.check(state.student, example)
        _check_width(spec_of(state.student))
        return state

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the narrower student; details record the factor of its width and both sizes."""
        source = state.student
        compressed = copy.deepcopy(source)
        self.compression.apply(compressed, context, init="random")
        target = artifact.bytes_of(compressed)
        spec, seed = spec_of(source), context.stage_seed
        factor = _largest_factor(spec, target, seed)
        student = _scaled(spec, factor, seed).to(context.device)
        context.details.update(
            epochs=0, width_factor=factor, matched_bytes=target, folder_bytes=artifact.bytes_of(student)
        )
        return State(student, state.teacher)


def _largest_factor(spec: Mapping[str, Any], target: int, seed: int) -> float:
    """Bisect for the widest network of at most `target` bytes."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if artifact.bytes_of(_scaled(spec, middle, seed)) <= target:
            low = middle
        else:
            high = middle
        if high - low < 1e-3:
            break
    if artifact.bytes_of(_scaled(spec, low, seed)) > target:
        raise ValueError(
            f"even the narrowest {spec['target']} takes more than {target} bytes; write a larger rank="
        )
    return low


def _scaled(spec: Mapping[str, Any], factor: float, seed: int) -> nn.Module:
    if is_of_transformers(spec):
        return build(spec["target"], hub_shapes.scaled(spec, factor)["kwargs"], seed=seed)
    options = dict(spec["kwargs"])
    for name in _widths(spec):
        value = options[name]
        options[name] = (
            [max(1, round(v * factor)) for v in value]
            if isinstance(value, list)
            else max(1e-3, value * factor)
        )
    return build(spec["target"], options, seed=seed)


def _check_width(spec: Mapping[str, Any]) -> None:
    """Raise ValueError for an architecture without an option for its width."""
    if is_of_transformers(spec):
        hub_shapes.scaled(spec, 0.5)
    elif not _widths(spec):
        raise ValueError(
            f"{spec['target']} has no option for its width ({' or '.join(_WIDTHS)}), so that no dense student of "
            "matched size can be made of it; write student=mlp, lenet5, a resnet, or a model of transformers"
        )


def _widths(spec: Mapping[str, Any]) -> list[str]:
    return [name for name in _WIDTHS if name in spec["kwargs"]]
