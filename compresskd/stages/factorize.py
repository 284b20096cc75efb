"""Replace dense layers by factorized ones, without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compresskd import measure, swap, tt
from compresskd.strategy import Context, State

SOURCES = ("student", "teacher")
INITS = ("decomposed", "random")
_TOO_LARGE_TO_TRY = (
    2**20
)  # parameters; decomposing such a layer only to see whether it gets smaller takes too long


class NothingCompressed(RuntimeError):
    """No layer became smaller: the run would report a compression that did not happen."""


@dataclass(frozen=True)
class Factorize:
    """Factorize the layers of the student, or of a copy of the teacher that becomes the student.

    Attributes:
        rank: cap on every bond.
        source: 'student', or 'teacher' to compress the teacher.
        init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, which
            keep the variance of activations (a student born in this format).
        include: shell-style patterns of module names; a layer is taken if any fits.
        exclude: patterns of layers to leave dense.

    Raises:
        ValueError: for a value out of its range.
    """

    rank: int
    source: str = "student"
    init: str = "decomposed"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: came {self.rank}; allowed: 1 or more")
        if self.source not in SOURCES:
            raise ValueError(f"source: came {self.source!r}; allowed: {', '.join(SOURCES)}")
        if self.init not in INITS:
            raise ValueError(f"init: came {self.init!r}; allowed: {', '.join(INITS)}")
        if not self.include:
            raise ValueError("compress.include: came an empty list; write ['*'] for every layer")

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is what is compressed."""
        return self.source == "teacher"

    def __call__(self, state: State, context: Context) -> State:
        """Return the state with the factorized student; details record ranks and skipped layers."""
        model = state.student
        if self.source == "teacher":
            if state.teacher is None:
                raise ValueError("source='teacher' needs a teacher")
            model = copy.deepcopy(state.teacher).requires_grad_(True)
        layers, skipped = factorize_model(model, self.layer, self.include, self.exclude)
        context.details.update(layers=layers, skipped=skipped, epochs=0)
        return State(model, state.teacher)

    def check(self, state: State, example: Tensor) -> State:
        """See `compresskd.strategy.Checked`: patterns fit layers, and some layer gets smaller."""
        model = state.student if self.source == "student" else state.teacher
        if model is None:
            raise ValueError("source='teacher' needs a teacher")
        _check_patterns([name for name, _ in factorizable(model)], self.include, self.exclude)
        self._check_smaller(model)
        return State(model, state.teacher)

    def _check_smaller(self, model: nn.Module) -> None:
        """Try the small layers first; the first that gets smaller is enough, as is one too large to be tried."""
        taken = [(n, m) for n, m in factorizable(model) if swap.matches(n, self.include, self.exclude)]
        skipped: dict[str, str] = {}
        for name, module in sorted(taken, key=lambda pair: measure.num_parameters(pair[1])):
            if measure.num_parameters(module) > _TOO_LARGE_TO_TRY:
                return
            tried = self.layer(copy.deepcopy(module))
            if not isinstance(tried, tt.Skipped):
                return
            skipped[name] = tried.reason
        raise NothingCompressed(f"rank: came {self.rank}; {_nothing_compressed(skipped)}")

    def layer(self, module: Any) -> nn.Module | tt.Skipped:
        """One layer factorized: a dense one decomposed, a tensor train rounded to the rank."""
        new: Any = module.round(self.rank) if is_factorized(module) else tt.factorize(module, rank=self.rank)
        if self.init == "random" and not isinstance(new, tt.Skipped):
            new.reset_parameters()
        return new


Layers = dict[str, dict[str, Any]]


def is_factorized(module: nn.Module) -> bool:
    """Whether the module holds factors whose ranks can be lowered."""
    return isinstance(module, swap.Structured) and hasattr(module, "round")


def factorizable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that has a factorized form, or is in one already, by name."""
    for name, module in model.named_modules():
        if name and (isinstance(module, nn.Linear | nn.Conv2d) or is_factorized(module)):
            yield name, module


def factorize_model(
    model: nn.Module,
    factorize: Callable[[nn.Module], nn.Module | tt.Skipped],
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[Layers, dict[str, str]]:
    """Factorize, in place, every layer that the patterns name.

    Returns:
        (layers, skipped): of each new layer its kind, ranks and parameters; of each layer left dense the reason.

    Raises:
        ValueError: a pattern that fits no layer.
        NothingCompressed: every layer stayed dense.
    """
    candidates = dict(factorizable(model))
    _check_patterns(list(candidates), include, exclude)
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if name not in candidates:
            return None
        if not swap.matches(name, include, exclude):
            skipped[name] = "left out by compress.include or compress.exclude"
            return None
        new = factorize(module)
        if isinstance(new, tt.Skipped):
            skipped[name] = new.reason
            return None
        sizes[name] = getattr(module, "num_parameters_dense", None) or measure.num_parameters(module)
        return new.to(next(module.parameters()).device).train(module.training)

    replaced = swap.replace(model, replacement)
    if not replaced:
        raise _nothing_compressed(skipped)
    return {name: _describe(module, sizes[name]) for name, module in replaced.items()}, skipped


def _nothing_compressed(skipped: Mapping[str, str]) -> NothingCompressed:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items()) or "it has no such layer"
    return NothingCompressed(f"no layer gets smaller ({reasons}); write a smaller rank=, or other layers")


def _describe(module: nn.Module, num_parameters_dense: int) -> dict[str, Any]:
    return {
        "kind": type(module).__name__,
        "ranks": list(getattr(module, "ranks", ())),
        "num_parameters": measure.num_parameters(module),
        "num_parameters_dense": num_parameters_dense,
    }


def _check_patterns(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    for key, patterns in (("compress.include", include), ("compress.exclude", exclude)):
        for pattern in patterns:
            if not any(swap.matches(name, [pattern], []) for name in names):
                raise ValueError(
                    f"{key}: '{pattern}' fits no layer; the layers are {', '.join(names) or 'none'}"
                )
