"""Students of the teacher's own architecture: all of it, some of its blocks, or a narrower one; from its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from compresskd.layers.stacks import stacks_of
from compresskd.models import hub_shapes
from compresskd.models.build import build, spec_of
from compresskd.models.huggingface import is_of_transformers
from compresskd.options import Count, OptionError, Whole, checked, did_you_mean

TEACHER, RANDOM = "teacher", "random"
FROM_TEACHER = f"{__name__}.FromTeacher"
_SHORTENED = f"{__name__}.shortened"


@checked
@dataclass(frozen=True)
class FromTeacher:
    """What a student keeps of the teacher.

    Attributes:
        layers: which blocks of a stack, counted from 0 and rising; None keeps all.
        stack: its name; None is the longest sequence of blocks of one class.
        width: hidden size of a narrower architecture of transformers: heads and feed-forward shrink in proportion.
        init: teacher starts from the teacher's values, random from the seed; None is teacher, but for a narrower
            student, whose shapes the teacher does not have, and for a strategy that begins with fresh factors.
    """

    layers: Sequence[Whole] | None = None
    stack: str | None = None
    width: Count | None = None
    init: Literal["teacher", "random"] | None = None

    def __post_init__(self) -> None:
        if self.width is not None and self.init == TEACHER:
            raise OptionError("init", self.init, f"{RANDOM} or null: a narrower student has other shapes")
        if self.stack is not None and self.layers is None:
            raise OptionError("layers", None, f"blocks of {self.stack}, such as [0, 2]")
        if self.layers is not None and (not self.layers or sorted(set(self.layers)) != list(self.layers)):
            raise OptionError("layers", list(self.layers), "one or more blocks, counted from 0 and rising")

    @property
    def inherits(self) -> bool:
        """Whether the student starts from the teacher's values."""
        return self.init != RANDOM and self.width is None

    def architecture(self, teacher: nn.Module) -> dict[str, Any]:
        """`{"target": ..., "kwargs": ...}` of the student: all that rebuilds it, without the teacher.

        Raises:
            OptionError: there is no such stack or block, or the architecture has no option for its width.
        """
        spec = spec_of(teacher)
        if self.width is not None:
            spec = hub_shapes.narrower(spec, self.width)
        if self.layers is None:
            return spec
        stack, count = self._stack(teacher)
        if self.layers[-1] >= count:
            raise OptionError("layers", list(self.layers), f"blocks of {stack}: 0 to {count - 1}")
        if is_of_transformers(spec):
            return hub_shapes.shorter(spec, stack, self.layers)
        model = {"_target_": spec["target"], **spec["kwargs"]}
        return {"target": _SHORTENED, "kwargs": {"model": model, "stack": stack, "layers": list(self.layers)}}

    def student(self, teacher: nn.Module, seed: int) -> nn.Module:
        """The student of a teacher, with values drawn from a seed."""
        made = self.architecture(teacher)
        return build(made["target"], made["kwargs"], seed=seed)

    @torch.no_grad()
    def inherit(self, student: nn.Module, teacher: nn.Module) -> None:
        """Give the student the teacher's values, in place, each block those of the block that it is."""
        theirs, ours = teacher.state_dict(), student.state_dict()
        stack = "" if self.layers is None else f"{self._stack(teacher)[0]}."
        values = {name: theirs[self._origin(name, stack, theirs)] for name in ours}
        student.load_state_dict(values)

    def _origin(self, name: str, stack: str, theirs: Mapping[str, Any]) -> str:
        if self.layers is None or not name.startswith(stack):
            return name
        number, _, rest = name.removeprefix(stack).partition(".")
        kept = f"{stack}{self.layers[int(number)]}.{rest}"
        return (
            kept if kept in theirs else name
        )  # what only the first block has, such as T5's relative positions

    def _stack(self, teacher: nn.Module) -> tuple[str, int]:
        stacks = dict(stacks_of(teacher))
        if self.stack is not None and self.stack in stacks:
            return self.stack, stacks[self.stack]
        kind = type(teacher).__name__
        if self.stack is not None:
            known = did_you_mean(self.stack, stacks) or f": {', '.join(stacks) or 'none'}"
            raise OptionError("stack", self.stack, f"a stack of {kind}'s blocks{known}")
        if not stacks:
            raise OptionError(
                "layers", list(self.layers or ()), f"null: {kind} has no stack of blocks of one class"
            )
        longest = max(stacks, key=lambda name: stacks[name])
        return longest, stacks[longest]


def shortened(*, model: nn.Module, stack: str, layers: Sequence[int]) -> nn.Module:
    """A model with these blocks of a stack alone, in place.

    Raises:
        ValueError: there is no such stack or block.
    """
    blocks: Any = model.get_submodule(stack)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not set(layers) <= set(range(len(blocks))):
        raise ValueError(f"'{stack}' of {type(model).__name__} has no blocks {list(layers)}")
    for number in reversed(range(len(blocks))):
        if number not in layers:
            del blocks[number]
    return model
