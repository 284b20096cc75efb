"""How a model is factorized: by which method, to what size, which of its layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compresskd import measure, swap, tt
from compresskd.proof import carrying, differing, read_by_others
from compresskd.stages.calibration import LayerStatistics, calibrate
from compresskd.stages.plan import Make, Method, applied, plan_layers
from compresskd.stages.size import Size
from compresskd.strategy import Context, few_samples, score

INITS = ("decomposed", "random")
METHODS = ("tensor_train", "svd", "tucker", "cp")
_TOO_LARGE_TO_TRY = (
    2**20
)  # parameters; decomposing such a layer only to see if it gets smaller takes too long
_MAX_REASONS = 4  # in one message: a deep network has a hundred layers of two shapes
Layers = dict[str, dict[str, Any]]


class NothingCompressed(RuntimeError):
    """No layer became smaller: the run would report a compression that did not happen."""


@dataclass(frozen=True)
class Compression:
    """What `compress` means in a run.

    Attributes:
        rank, ranks, tolerance, energy, budget, budget_of, max_drop: the wish for the size, see `Size`.
        method: tensor_train (whose search over modes includes the low-rank SVD), svd, tucker or cp.
        num_cores: of a tensor train; None lets the search choose.
        modes: layer-name pattern to the modes to take in place of the search: [input modes, output modes] of a linear
            layer, the kernels of the stages of a convolution; the first pattern that fits counts. Of a tensor train
            sized by ranks, tolerance or energy.
        data_aware: whether the error that counts is that of a layer's output, over inputs seen on
            `num_calibration` training samples; tensor_train and svd only.
        include: shell-style patterns of module names; a layer is taken if any fits.
        exclude: patterns of layers to leave dense.

    Raises:
        ValueError: for a value out of its range.
    """

    rank: int
    ranks: Mapping[str, int | Sequence[int]] | None = None
    tolerance: float | None = None
    energy: float | None = None
    budget: float | None = None
    budget_of: str = "parameters"
    max_drop: float | None = None
    method: str = "tensor_train"
    num_cores: int | None = None
    modes: Mapping[str, Sequence[Sequence[int]]] | None = None
    data_aware: bool = False
    num_calibration: int = 512
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        size = self.size
        if not self.include:
            raise ValueError("compress.include: came an empty list; write ['*'] for every layer")
        if self.method not in METHODS:
            raise ValueError(f"compress.method: came {self.method!r}; allowed: {', '.join(METHODS)}")
        if self.num_calibration < 1:
            raise ValueError(f"compress.num_calibration: came {self.num_calibration}; allowed: 1 or more")
        if self.num_cores is not None and self.num_cores < 2:
            raise ValueError(f"compress.num_cores: came {self.num_cores}; allowed: 2 or more, or null")
        if self.num_cores is not None and self.method != "tensor_train":
            raise ValueError(
                f"compress.num_cores: came {self.num_cores} with method {self.method}; allowed: null"
            )
        if self.method in ("tucker", "cp"):
            self._check_by_rank_only(size)
        if self.modes and (self.method != "tensor_train" or size.is_shared or self.num_cores is not None):
            raise ValueError(
                "compress.modes: came with another method, num_cores, budget or max_drop; allowed: method tensor_train "
                "sized by rank, ranks, tolerance or energy"
            )
        for pattern, ranks in (self.ranks or {}).items():
            if not isinstance(ranks, int) and not self.modes:
                raise ValueError(
                    f"compress.ranks: came a list for '{pattern}', whose bonds are not known; allowed: one number, or "
                    "compress.modes as well"
                )

    def _check_by_rank_only(self, size: Size) -> None:
        if self.data_aware:
            raise ValueError(
                f"compress.data_aware: came true with method {self.method}; allowed: tensor_train, svd"
            )
        if size.is_shared:
            key = "budget" if size.budget is not None else "max_drop"
            raise ValueError(f"compress.{key}: came with method {self.method}; allowed: tensor_train, svd")

    @property
    def size(self) -> Size:
        """The wish for the size."""
        return Size(
            self.rank, self.ranks, self.tolerance, self.energy, self.budget, self.budget_of, self.max_drop
        )

    def apply(
        self, model: nn.Module, context: Context, *, init: str = "decomposed"
    ) -> tuple[Layers, dict[str, str]]:
        """Factorize `model` in place; see `factorize_model` for what is returned and raised."""
        return factorize_model(
            model, self.plan(model, context, init=init), few_samples(context), fresh=init == "random"
        )

    def plan(self, model: nn.Module, context: Context, *, init: str = "decomposed") -> dict[str, Make]:
        """What is done with each layer that the patterns name; `model` stays as it is.

        Args:
            init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, which
                keep the variance of activations.
        """
        layers, kept = self._taken(model), dict[str, Make]()
        for name, reason in read_by_others(model, list(layers), few_samples(context)).items():
            kept[name] = functools.partial(_left, reason=reason)
        layers = {name: layer for name, layer in layers.items() if name not in kept}
        statistics = {} if init == "random" else self._statistics(model, layers, context)

        def accuracy(plan: dict[str, Make]) -> float:
            return score(applied(model, plan), context.data.validation, context).accuracy

        plan = plan_layers(
            layers,
            self.size,
            Method(self.method, self.num_cores, statistics, self.modes or {}),
            model,
            accuracy,
        )
        if init == "random":
            plan = {name: functools.partial(_fresh, make=make) for name, make in plan.items()}
        return plan | kept

    def _taken(self, model: nn.Module) -> dict[str, nn.Module]:
        found = dict(factorizable(model))
        _check_patterns(list(found), self.include, self.exclude)
        for key in ("ranks", "modes"):
            _check_fit(list(found), f"compress.{key}", list(getattr(self, key) or ()))
        return {n: m for n, m in found.items() if swap.matches(n, self.include, self.exclude)}

    def _statistics(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, LayerStatistics]:
        names = [
            n
            for n, m in layers.items()
            if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)
        ]
        if not self.data_aware or not names:
            return {}
        return calibrate(
            model, names, context.data.train, num_samples=self.num_calibration, seed=context.stage_seed
        )

    def check(self, model: nn.Module, example: Tensor) -> None:
        """Raise ValueError, or NothingCompressed, where the patterns fit nothing or no layer would get smaller.

        Args:
            example: [2, ...] inputs of the model.
        """
        layers = self._taken(model)
        read = read_by_others(model, list(layers), example)
        layers = {name: layer for name, layer in layers.items() if name not in read}
        if read and not layers:
            raise NothingCompressed(f"compress.include: {_nothing_compressed(read)}")
        if self.size.is_rank:
            self._check_smaller(layers)

    def _check_smaller(self, layers: Mapping[str, nn.Module]) -> None:
        """Try the small layers first; the first that gets smaller is enough, as is one too large to be tried."""
        plan = plan_layers(
            layers,
            self.size,
            Method(self.method, self.num_cores, {}, self.modes or {}),
            nn.Module(),
            lambda _: 0.0,
        )
        skipped: dict[str, str] = {}
        for name, module in sorted(layers.items(), key=lambda pair: measure.num_parameters(pair[1])):
            if measure.num_parameters(module) > _TOO_LARGE_TO_TRY:
                return
            tried = plan[name](copy.deepcopy(module))
            if not isinstance(tried, tt.Skipped):
                return
            skipped[name] = tried.reason
        raise NothingCompressed(f"rank: came {self.rank}; {_nothing_compressed(skipped)}")


def _left(layer: nn.Module, *, reason: str) -> tt.Skipped:
    return tt.Skipped(reason)


def _fresh(layer: nn.Module, *, make: Make) -> nn.Module | tt.Skipped:
    new: Any = make(layer)
    if not isinstance(new, tt.Skipped):
        new.reset_parameters()
    return new


def is_factorized(module: nn.Module) -> bool:
    """Whether the module holds factors already."""
    return isinstance(module, swap.Structured) and hasattr(module, "ranks")


def factorizable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that has a factorized form, or is in one already, by name."""
    for name, module in model.named_modules():
        if name and (isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) or is_factorized(module)):
            yield name, module


def factorize_model(
    model: nn.Module, plan: Mapping[str, Make], inputs: Tensor, *, fresh: bool = False
) -> tuple[Layers, dict[str, str]]:
    """Carry out a plan on the layers of `model`, in place.

    A new layer is only put in where a trial on `inputs` [B, ...] shows that it does in the model what the old one would
    do with the same weight (and with `fresh` the same bias).

    Returns:
        (layers, skipped): of each new layer its kind, ranks and parameters; of each layer left dense the reason.

    Raises:
        NothingCompressed: every layer stayed dense.
    """
    candidates = dict(factorizable(model))
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if name not in candidates:
            return None
        if name not in plan:
            skipped[name] = "left out by compress.include or compress.exclude"
            return None
        new = plan[name](module)
        if isinstance(new, tt.Skipped):
            skipped[name] = new.reason
            return None
        sizes[name] = getattr(module, "num_parameters_dense", None) or measure.num_parameters(module)
        return new.to(next(module.parameters()).device).train(module.training)

    made = {
        name: new for name, module in model.named_modules() if (new := replacement(name, module)) is not None
    }
    twins = {name: carrying(model.get_submodule(name), new, bias=fresh) for name, new in made.items()}
    skipped |= differing(model, made, twins, inputs)
    replaced = swap.replace(model, lambda name, _: None if name in skipped else made.get(name))
    if not replaced:
        raise _nothing_compressed(skipped)
    return {name: _describe(module, sizes[name]) for name, module in replaced.items()}, skipped


def _nothing_compressed(skipped: Mapping[str, str]) -> NothingCompressed:
    reasons = [f"{name}: {reason}" for name, reason in skipped.items()] or ["it has no such layer"]
    more = len(reasons) - _MAX_REASONS
    told = "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return NothingCompressed(f"no layer gets smaller ({told}); write a smaller rank=, or other layers")


def _describe(module: nn.Module, num_parameters_dense: int) -> dict[str, Any]:
    described = {
        "kind": type(module).__name__,
        "ranks": list(getattr(module, "ranks", ())),
        "num_parameters": measure.num_parameters(module),
        "num_parameters_dense": num_parameters_dense,
    }
    for dims in ("input_dims", "output_dims"):
        if hasattr(module, dims):
            described[dims] = list(getattr(module, dims))
    return described


def _check_patterns(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    _check_fit(names, "compress.include", include)
    _check_fit(names, "compress.exclude", exclude)


def _check_fit(names: Sequence[str], key: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(swap.matches(name, [pattern], []) for name in names):
            raise ValueError(f"{key}: '{pattern}' fits no layer; the layers are {', '.join(names) or 'none'}")
