"""How a model is factorized: by which method, to what size, which of its layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import nn

from compresskd import layers, measure, tt
from compresskd.compression.calibration import (
    CALIBRATED_TOGETHER,
    LayerStatistics,
    calibrate,
    combined,
    of_table,
)
from compresskd.compression.plan import Method, applied, plan_layers
from compresskd.compression.replacement import Make, Replaced, carry_out, refusal
from compresskd.compression.size import Size
from compresskd.engine.strategy import Context, few_samples, score, shortened
from compresskd.layers import surgery
from compresskd.options import Count, OptionError, checked, one_of, raise_all
from compresskd.proof import carrying, differing, read_by_others, sharing
from compresskd.tasks import Inputs
from compresskd.training import Scores

Init = Annotated[str, one_of("decomposed", "random")]
_TOO_LARGE_TO_TRY = (
    2**20
)  # parameters; decomposing such a layer only to see if it gets smaller takes too long
_MAX_REASONS = 4  # in one message: a deep network has a hundred layers of two shapes


class NothingCompressed(OptionError, RuntimeError):
    """No layer became smaller: the run would report a compression that did not happen."""


@checked
@dataclass(frozen=True)
class Compression(Size):
    """What `compress` means in a run.

    Attributes:
        rank, ranks, tolerance, energy, budget, budget_of, max_drop: the target for the size, see `Size`.
        method: tensor_train (whose search over modes includes the low-rank SVD), svd, tucker or cp.
        num_cores: of a tensor train; None lets the search choose.
        modes: layer-name pattern to the modes to take in place of the search: [input modes, output modes] of a linear
            layer, the kernels of the stages of a convolution; the first pattern that fits counts. Of a tensor train
            sized by ranks, tolerance or energy.
        data_aware: whether the error that counts is that of a layer's output, over inputs seen on
            `num_calibration` training samples; tensor_train and svd only.
        include: shell-style patterns of module names; a layer is taken if any fits.
        exclude: patterns of layers to leave dense. Of a weight that is tied, or is there under several names, any
            name counts.
        keep_larger: factorize layers that do not get smaller, too: at full rank nothing else may change.

    Raises:
        ValueError: for a value out of its range.
    """

    method: Annotated[str, one_of("tensor_train", "svd", "tucker", "cp")] = "tensor_train"
    num_cores: Annotated[int, Ge(2), Le(4)] | None = None
    modes: Mapping[str, Sequence[Sequence[int]]] | None = None
    data_aware: bool = False
    num_calibration: Count = 512
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    keep_larger: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all(self._faults())

    def _faults(self) -> Iterator[OptionError]:
        if not self.include:
            yield OptionError("include", self.include, "at least one pattern, such as ['*'] for every layer")
        if self.num_cores is not None and self.method != "tensor_train":
            yield OptionError("num_cores", self.num_cores, f"null with method={self.method}")
        if self.method in ("tucker", "cp"):
            for key, of in (("data_aware", "false"), ("budget", "null"), ("max_drop", "null")):
                if getattr(self, key):
                    yield OptionError(key, getattr(self, key), f"{of} with method={self.method}")
        if self.modes and (self.method != "tensor_train" or self.is_shared or self.num_cores is not None):
            expected = (
                "null, or method=tensor_train sized by rank, ranks, tolerance or energy, without num_cores"
            )
            yield OptionError("modes", self.modes, expected)
        for pattern, ranks in (self.ranks or {}).items():
            if not isinstance(ranks, int) and not self.modes:
                yield OptionError(
                    f"ranks.{pattern}", ranks, "one number where `modes` does not say its modes"
                )

    def apply(self, model: nn.Module, context: Context, *, init: str = "decomposed") -> Replaced:
        """Factorize `model` in place; see `factorize_model` for what is returned and raised."""
        return factorize_model(
            model, self.plan(model, context, init=init), few_samples(model, context), fresh=init == "random"
        )

    def plan(self, model: nn.Module, context: Context, *, init: str = "decomposed") -> dict[str, Make]:
        """What is done with each layer that the patterns name; `model` stays as it is.

        Args:
            init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, whose
                weights have the mean square of the dense ones.
        """
        taken, kept = _without_read(model, self._taken(model), few_samples(model, context))
        statistics = {} if init == "random" else self._statistics(model, taken, context)

        def scores(plan: dict[str, Make]) -> Scores:
            return score(applied(model, plan), context.data.validation, context)

        plan = plan_layers(
            {layer.name: layer.module for layer in taken},
            self,
            Method(self.method, self.num_cores, statistics, self.modes or {}, self.keep_larger),
            model,
            scores,
        )
        if init == "random":
            plan = {name: functools.partial(_fresh, make=make) for name, make in plan.items()}
        return plan | kept

    def _taken(self, model: nn.Module) -> list[layers.Layer]:
        """The layers that the patterns name and that may be replaced."""
        found = layers.find(model)
        names = [name for layer in found for name in layer.names]
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            _check_fit(names, key, patterns)
        for key in ("ranks", "modes"):
            _check_fit([layer.name for layer in found], key, list(getattr(self, key) or ()))
        return [layer for layer in found if self._names(layer) and layer.obstacle is None]

    def _names(self, layer: layers.Layer) -> bool:
        included = any(surgery.matches(name, self.include, ()) for name in layer.names)
        return included and not any(surgery.matches(name, self.exclude, ()) for name in layer.names)

    def _statistics(
        self, model: nn.Module, taken: Sequence[layers.Layer], context: Context
    ) -> dict[str, LayerStatistics]:
        watched = [layer for layer in taken if all(map(_is_watched, layer.members.values()))]
        if not self.data_aware or not any(layers.is_matrix(layer.module) for layer in watched):
            return {}
        found = calibrate(
            model,
            [name for layer in watched for name in layer.members],
            context.data.train,
            num_samples=self.num_calibration,
            seed=context.stage_seed,
            batch_size=context.data.at_once(CALIBRATED_TOGETHER),
        )
        seen = {
            layer.name: [
                of_table(found[name], module) if isinstance(module, nn.Embedding) else found[name]
                for name, module in layer.members.items()
                if name in found
            ]
            for layer in watched
        }
        return {name: combined(statistics) for name, statistics in seen.items() if statistics}

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Raise ValueError, or NothingCompressed, where the patterns fit nothing or no layer would get smaller.

        Args:
            example: [2, ...] inputs of the model.
        """
        taken, read = _without_read(model, self._taken(model), shortened(model, example))
        if not taken:
            skipped = carry_out(copy.deepcopy(model), read).skipped
            raise NothingCompressed("include", self.include, f"other layers: {_reasons(skipped)}")
        if self.method in ("tensor_train", "svd"):
            self._check_forms(taken, model)
        if self.is_rank:
            self._check_smaller(taken)

    def _check_forms(self, taken: Iterable[layers.Layer], model: nn.Module) -> None:
        """Each layer takes the modes, ranks and cores that are given; the smallest forms together fit a budget."""
        method = Method(self.method, self.num_cores, {}, self.modes or {})
        least = measure.num_parameters(model)
        for layer in taken:
            if layers.is_factorized(layer.module):
                continue
            options = {k: v for k, v in method.options(layer.name).items() if k != "input_covariance"}
            ranks = self.of_layer(layer.name).get("ranks")
            try:
                smallest = tt.least_parameters(layer.module, ranks=ranks, **options)
            except (TypeError, ValueError) as error:
                key = "modes" if "modes" in options else "num_cores" if ranks is None else "ranks"
                raise OptionError(key, getattr(self, key), f"what fits {layer.name}: {error}") from error
            if smallest is not None:
                least -= max(0, layers.plain(layer.module).weight.numel() - smallest)
        total = measure.num_parameters(model)
        if self.budget is not None and int(self.budget * total) < least:
            expected = (
                f">= {least / total:.4g} of {total:,} parameters, which every layer at ranks of 1 takes"
            )
            raise OptionError("budget", self.budget, expected)

    def _check_smaller(self, taken: Iterable[layers.Layer]) -> None:
        """Try the small layers first; the first that gets smaller is enough, as is one too large to be tried."""
        modules = {layer.name: layer.module for layer in taken}
        method = Method(self.method, self.num_cores, {}, self.modes or {}, self.keep_larger)
        plan = plan_layers(modules, self, method, nn.Module(), None)
        skipped: dict[str, str] = {}
        # a deep network has thousands of layers of a few shapes, and sizes follow from shapes
        alike: set[Any] = set()
        for layer in sorted(taken, key=lambda layer: measure.num_parameters(layer.module)):
            refused = refusal(layer.members.values())
            if refused is None and measure.num_parameters(layer.module) > _TOO_LARGE_TO_TRY:
                return
            shape = (
                layers.type_of(layer.module),
                *(p.shape for p in layer.module.parameters()),
                repr(self.of_layer(layer.name)),
            )
            if refused is None and shape in alike and not self.modes:
                continue
            alike.add(shape)
            tried = refused or plan[layer.name](copy.deepcopy(layer.module))
            if not isinstance(tried, tt.Skipped):
                return
            skipped[layer.name] = tried.reason
        raise NothingCompressed("rank", self.rank, f"a smaller one, or other layers: {_reasons(skipped)}")


def _is_watched(layer: nn.Module) -> bool:
    return layers.is_matrix(layer) or (isinstance(layer, nn.Embedding) and layers.obstacle(layer) is None)


def _left(layer: nn.Module, *, reason: str) -> tt.Skipped:
    return tt.Skipped(reason)


def _fresh(layer: nn.Module, *, make: Make) -> nn.Module | tt.Skipped:
    """Fresh factors whose weight has the mean square of the layer's own: tables of 0.02 are not to start at 1."""
    new: Any = make(layer)
    if not isinstance(new, tt.Skipped):
        old: Any = layer
        weight = old.to_dense() if layers.is_factorized(layer) else layers.plain(layer).weight
        new.reset_parameters(gain=new.gain_of(float(weight.detach().square().mean().sqrt())))
    return new


def factorize_model(
    model: nn.Module, plan: Mapping[str, Make], inputs: Inputs, *, fresh: bool = False
) -> Replaced:
    """Carry out a plan on the layers of `model`, in place.

    A new layer stays only where a trial on `inputs` [B, ...] shows that it does in the model what the old one would do
    with the same weight (and with `fresh` the same bias).

    Raises:
        NothingCompressed: every layer stayed dense.
    """
    replaced = carry_out(model, plan)
    pairs = list(replaced.replacements.values())
    old = {name: layer for pair in pairs for name, layer in pair.old.items()}
    new = {name: layer for pair in pairs for name, layer in pair.new.items()}
    twins = {name: carrying(old[name], new[name], bias=fresh) for name in new}
    computed = {name: layer for name, layer in old.items() if layers.computes_weight(layer)}
    plain = {name: layers.plain(layer) for name, layer in computed.items()}
    reasons = differing(model, computed, plain, sharing(computed), inputs)  # their plain form is tried, too
    reasons |= differing(model, old, new, twins, inputs)
    for name, each in list(replaced.replacements.items()):
        wrong = next((reasons[member] for member in each.new if member in reasons), None)
        if wrong is not None:
            replaced.put_back(model, name, wrong)
    if not replaced.replacements:
        raise NothingCompressed(
            "include", list(plan), f"layers that get smaller: {_reasons(replaced.skipped)}"
        )
    return replaced


def _without_read(
    model: nn.Module, taken: Sequence[layers.Layer], inputs: Inputs
) -> tuple[list[layers.Layer], dict[str, Make]]:
    """The layers whose weight no other module reads, and for each of the others what leaves it as it is."""
    reasons = read_by_others(model, [name for layer in taken for name in layer.members], inputs)
    read = {
        layer.name: next(reasons[name] for name in layer.members if name in reasons)
        for layer in taken
        if reasons.keys() & layer.members.keys()
    }
    kept: dict[str, Make] = {name: functools.partial(_left, reason=reason) for name, reason in read.items()}
    return [layer for layer in taken if layer.name not in read], kept


def _reasons(skipped: Mapping[str, str]) -> str:
    reasons = [f"{name}: {reason}" for name, reason in skipped.items()] or ["it has no such layer"]
    more = len(reasons) - _MAX_REASONS
    told = "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")
    return f"no layer gets smaller ({told})"


def _check_fit(names: Sequence[str], key: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(surgery.matches(name, [pattern], []) for name in names):
            raise OptionError(
                key, pattern, f"a pattern that fits one of the layers {', '.join(names) or '(none)'}"
            )
