"""How a model is factorized: by which method, to what size, which of its layers."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import nn

from compresskd import artifact, layers, measure, tt
from compresskd.compression.calibration import LayerStatistics, calibrate
from compresskd.compression.compensation import COMPENSATIONS, SEQUENTIAL, compensated
from compresskd.compression.costs import PARAMETERS, costs_of
from compresskd.compression.norm_statistics import KEEP, REESTIMATE, WAYS, norms_of, reestimate
from compresskd.compression.plan import (
    Method,
    SensitivityTable,
    applied,
    from_table,
    kept,
    of_one_ratio,
    plan_layers,
)
from compresskd.compression.replacement import Make, Replaced, carry_out, refusal
from compresskd.compression.size import Size
from compresskd.compression.trial import NothingCompressed, factorize_model, reasons_of, without_read
from compresskd.compression.weighting import (
    DAMPING,
    INPUT,
    NONE,
    TWO_SIDED,
    WHITENINGS,
    Weighting,
    combined,
    damped,
    shortage_text,
    shortages,
    weighting_of,
)
from compresskd.data.base import Split
from compresskd.data.draw import draw
from compresskd.engine.strategy import Context, few_samples, score
from compresskd.layers import surgery
from compresskd.options import Count, NonNegative, OptionError, checked, one_of, raise_all
from compresskd.tasks import Inputs
from compresskd.tasks.batch import shortened
from compresskd.training import Scores
from compresskd.training.evaluation import evaluation_mode
from compresskd.tt.decompose.row_groups import MOST_GROUPS

Init = Annotated[str, one_of("decomposed", "random")]
ERROR, RATIO = "error", "ratio"
_COMPENSATED_AT_ONCE = 8  # samples in a batch
_TOO_LARGE_TO_TRY = (
    2**20
)  # parameters; decomposing such a layer only to see if it gets smaller takes too long


@checked
@dataclass(frozen=True)
class Compression(Size):
    """What `compress` means in a run.

    Attributes:
        rank, ranks, tolerance, energy, budget, budget_of, max_drop: the target for the size, see `Size`.
        method: tensor_train (whose search over modes includes the low-rank SVD), svd, interpolative (the low-rank SVD
            of a linear layer in fewer parameters), tucker or cp.
        allocation: of a budget: 'error' gives each layer what makes the sum of errors the least, 'ratio' each the same
            share of its parameters.
        num_cores: of a tensor train; None lets the search choose.
        modes: layer-name pattern to the modes to take in place of the search: [input modes, output modes] of a linear
            layer, the kernels of the stages of a convolution; the first pattern that fits counts. Of a tensor train
            sized by ranks, tolerance or energy.
        whitening: what an error of a weight counts by, over `num_calibration` training samples: 'none' by itself;
            'input_scale' by the root mean square of each input; 'input' by the error of the layer's output;
            'two_sided' also by what gradients of the task say of outputs, see `compresskd.compression.weighting`.
            Lower ranks of layers that are factorized already count by it as well, where ranks are the target. Neither
            tucker nor cp.
        damping: shares of their mean diagonals by which the covariances of inputs and of gradients are raised; None
            takes those of `compresskd.compression.weighting.DAMPING`, of two_sided for a compensation.
        compensation: 'sequential' fits each layer in closed form to what the compressed layers before it give it, over
            the calibration samples, see `compresskd.compression.compensation`; ranks are those of 'none'.
        batch_norm: 'reestimate' finds the running statistics of batch norm anew over the calibration samples, once
            layers are factorized, see `compresskd.compression.norm_statistics`; 'keep' leaves those of the dense model.
        row_groups: into how many groups, by how often training samples ask for them, the rows of a table of tokens
            are divided; each group has a rank of its own (`rank` gives as many parameters as one rank would). A table
            that is tied is not divided.
        include: shell-style patterns of module names; a layer is taken if any fits.
        exclude: patterns of layers to leave dense. Of a weight that is tied, or is there under several names, any
            name counts.
        keep_larger: factorize layers that do not get smaller, too: at full rank nothing else may change.

    Raises:
        ValueError: for a value out of its range.
    """

    method: Annotated[str, one_of(*tt.METHODS)] = "tensor_train"
    allocation: Annotated[str, one_of(ERROR, RATIO)] = ERROR
    num_cores: Annotated[int, Ge(2), Le(4)] | None = None
    modes: Mapping[str, Sequence[Sequence[int]]] | None = None
    whitening: Annotated[str, one_of(*WHITENINGS)] = NONE
    damping: Sequence[NonNegative] | None = None
    num_calibration: Count = 512
    compensation: Annotated[str, one_of(*COMPENSATIONS)] = COMPENSATIONS[0]
    batch_norm: Annotated[str, one_of(*WAYS)] = KEEP
    row_groups: Annotated[int, Ge(1), Le(MOST_GROUPS)] = 1
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    keep_larger: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_all([*self._faults(), *self._faults_of_allocation()])

    def _faults(self) -> Iterator[OptionError]:
        if not self.include:
            yield OptionError("include", self.include, "at least one pattern, such as ['*'] for every layer")
        if self.num_cores is not None and self.method != "tensor_train":
            yield OptionError("num_cores", self.num_cores, f"null with method={self.method}")
        if self.method in ("tucker", "cp"):
            for key, off in (("whitening", NONE), ("budget", None), ("max_drop", None)):
                if getattr(self, key) != off:
                    yield OptionError(key, getattr(self, key), f"{off or 'null'} with method={self.method}")
        if self.row_groups > 1 and (self.whitening == NONE or self.method in ("tucker", "cp")):
            expected = (
                "1 with whitening=none, or method=tucker or cp: groups are by how often rows are asked for"
            )
            yield OptionError("row_groups", self.row_groups, expected)
        if self.batch_norm == REESTIMATE and self.num_calibration < 2:
            expected = f">= 2 samples with batch_norm={REESTIMATE}: one has no variance"
            yield OptionError("num_calibration", self.num_calibration, expected)
        if self.damping is not None and self.whitening == NONE:
            yield OptionError("damping", self.damping, "null with whitening=none")
        elif self.damping is not None and len(self.damping) != 2:
            yield OptionError("damping", self.damping, "two shares, [of inputs, of gradients]")
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

    def _faults_of_allocation(self) -> Iterator[OptionError]:
        if self.allocation == RATIO and self.max_drop is not None:
            yield OptionError("allocation", self.allocation, f"{ERROR} with max_drop")
        if self.allocation == RATIO and self.budget is not None and self.budget_of != PARAMETERS:
            yield OptionError("budget_of", self.budget_of, f"{PARAMETERS} with allocation=ratio")
        if self.compensation == SEQUENTIAL and self.whitening not in (INPUT, TWO_SIDED):
            yield OptionError("compensation", self.compensation, f"none with whitening={self.whitening}")

    def apply(self, model: nn.Module, context: Context, *, init: str = "decomposed") -> Replaced:
        """Factorize `model` in place; see `factorize_model` for what is returned and raised."""
        plan = self.plan(model, context, init=init)
        if self.compensation == SEQUENTIAL and init != "random":
            plan = self._compensated(model, plan, context)
        replaced = factorize_model(model, plan, few_samples(model, context), fresh=init == "random")
        if self.batch_norm == REESTIMATE:
            size = max(2, context.recipe.evaluation_batch_size)  # one sample has no variance
            reestimate(model, self._drawn(context), batch_size=size, note=context.reporter.note)
        return replaced

    def _drawn(self, context: Context) -> Split:
        """The calibration samples."""
        return draw(context.data.train, self.num_calibration, seed=context.stage_seed)

    def _compensated(self, model: nn.Module, plan: Mapping[str, Make], context: Context) -> dict[str, Make]:
        """The plan with its matrices fitted in order; the record says of each other layer why it is not."""
        taken, _ = without_read(model, self._taken(model), few_samples(model, context))
        reasons = {layer.name: reason for layer in taken if (reason := _not_fitted(layer)) is not None}
        wanted = [layer.name for layer in taken if layer.name not in reasons]
        batches = list(self._drawn(context).batches(_COMPENSATED_AT_ONCE))
        damping = (self.damping or DAMPING[TWO_SIDED])[0]
        found = compensated(model, plan, wanted, batches, damping=damping, note=context.reporter.note)
        left = {name: "dense, or never run" for name in wanted if found[name] is plan[name]}
        context.details["compensation"] = {"damping": damping, "not_fitted": reasons | left}
        return found

    def plan(self, model: nn.Module, context: Context, *, init: str = "decomposed") -> dict[str, Make]:
        """What is done with each layer that the patterns name; `model` stays as it is.

        Args:
            init: 'decomposed' takes the factors of the dense weights; 'random' fresh ones of the same shapes, whose
                weights have the mean square of the dense ones.
        """
        taken, left = without_read(model, self._taken(model), few_samples(model, context))

        def scores(plan: dict[str, Make]) -> Scores:
            return score(applied(model, plan), context.data.validation, context)

        def table() -> tuple[SensitivityTable | Method, dict[str, Any]]:
            method = self._method(model, taken, context, init)
            if self.allocation == RATIO:
                return method, context.details
            inputs = next(iter(context.data.train.batches(1, epoch=None))).inputs
            costs = costs_of(self.budget_of, self.budget_over, chosen, model, inputs, self.method)
            return SensitivityTable(chosen, method, model, costs), context.details

        chosen = {layer.name: layer.module for layer in taken}
        if self.is_shared:
            options = {key: value for key, value in vars(self).items() if key != "budget"}
            of_data = context.data.batches_fingerprint, context.stage_seed
            found, details = kept(lambda: repr((artifact.fingerprint(model), options, init, of_data)), table)
            context.details.update(details)
            if isinstance(found, Method):
                made = of_one_ratio(chosen, self, found, model)
            else:
                made = from_table(found, self, scores)
        else:
            made = plan_layers(chosen, self, self._method(model, taken, context, init), model, None)
        if init == "random":
            made = {name: functools.partial(_fresh, make=make) for name, make in made.items()}
        return made | left

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

    def _method(self, model: nn.Module, taken: Sequence[layers.Layer], context: Context, init: str) -> Method:
        # fresh factors have the shapes that decomposed ones have, and those of groups follow from what is asked for
        known = init != "random" or self.row_groups > 1
        weightings = self._weightings(model, taken, context) if known else {}
        groups, left = self._row_groups(taken)
        for name in list(groups):
            if name not in weightings or weightings[name].outputs is None:
                left[name] = "no calibration sample asks for its rows"
                del groups[name]
        if left:
            context.details["not_in_groups"] = left
        return Method(self.method, self.num_cores, weightings, self.modes or {}, self.keep_larger, groups)

    def _row_groups(self, taken: Iterable[layers.Layer]) -> tuple[dict[str, int], dict[str, str]]:
        """Into how many groups the rows of each table are divided, and why those of others are not."""
        tables = [layer for layer in taken if isinstance(layer.module, nn.Embedding)]
        if self.row_groups == 1 or not tables:
            return {}, {}
        reasons = {layer.name: _not_in_groups(layer) for layer in tables}
        left = {name: reason for name, reason in reasons.items() if reason is not None}
        return {name: self.row_groups for name in reasons if name not in left}, left

    def _weightings(
        self, model: nn.Module, taken: Sequence[layers.Layer], context: Context
    ) -> dict[str, Weighting]:
        """How errors of each layer count; layers of which calibration can say nothing are left out."""
        watched = [layer for layer in taken if all(map(self._is_watched, layer.members.values()))]
        if self.whitening == NONE or not watched:
            return {}
        found = calibrate(
            model,
            [name for layer in watched for name in layer.members],
            context.data.train,
            num_samples=self.num_calibration,
            seed=context.stage_seed,
            task=context.data.task if self.whitening == TWO_SIDED else None,
            note=context.reporter.note,
        )
        context.details["calibration"] = self._told(found, context)
        weightings = {}
        for layer in watched:
            known = (
                weighting_of(m, found[name], self.whitening)
                for name, m in layer.members.items()
                if name in found
            )
            damped_ones = [damped(each, self._damping) for each in known if each is not None]
            if damped_ones:
                weightings[layer.name] = combined(damped_ones, _weight_shape(layer.module))
        return weightings

    def _is_watched(self, layer: nn.Module) -> bool:
        """Whether errors of a layer count by what calibration says: of a factorized one those of lower ranks."""
        if layers.is_factorized(layer):
            return self.is_rank and hasattr(layer, "round")
        return layers.is_matrix(layer) or (isinstance(layer, nn.Embedding) and layers.obstacle(layer) is None)

    @property
    def _damping(self) -> Sequence[float]:
        return DAMPING[self.whitening] if self.damping is None else self.damping

    def _told(self, found: Mapping[str, LayerStatistics], context: Context) -> dict[str, Any]:
        """What the record says of a calibration; covariances without full rank need damping."""
        short = [each for name, f in found.items() for each in shortages(name, f, self.whitening)]
        for each in short:
            if not self._damping[each.of == "gradients"]:
                seen = min(self.num_calibration, len(context.data.train))
                expected = (
                    f">= {math.ceil(seen * each.wanted / max(1, each.rows))} samples: the covariance of the "
                    f"{each.wanted} {each.of} of {each.layer} takes as many rows, and has {each.rows}; or "
                    "damping=[1e-3, 1e-2]"
                )
                raise OptionError("num_calibration", seen, expected)
        if short:
            context.reporter.note(shortage_text(short, self._damping))
        return {
            "whitening": self.whitening,
            "damping": list(self._damping),
            "short_of_rows": {f"{each.layer} ({each.of})": [each.rows, each.wanted] for each in short},
        }

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Raise ValueError, or NothingCompressed, where the patterns fit nothing or no layer would get smaller.

        Args:
            example: [2, ...] inputs of the model.
        """
        if self.batch_norm == REESTIMATE and not norms_of(model):
            expected = f"{KEEP}: the model has no batch norm that keeps running statistics"
            raise OptionError("batch_norm", self.batch_norm, expected)
        with evaluation_mode(model):
            tried = shortened(model, example)
        taken, read = without_read(model, self._taken(model), tried)
        if not taken:
            skipped = carry_out(copy.deepcopy(model), read).skipped
            raise NothingCompressed("include", self.include, f"other layers: {reasons_of(skipped)}")
        if self.method not in ("tucker", "cp"):
            self._check_forms(taken, model, example)
        if self.is_rank:
            self._check_smaller(taken)

    def _check_forms(self, taken: Iterable[layers.Layer], model: nn.Module, example: Inputs) -> None:
        """Each layer takes the modes, ranks and cores that are given; the smallest forms together fit a budget."""
        groups, left = self._row_groups(taken)
        if self.row_groups > 1 and not groups:
            why = "; ".join(f"{n}: {reason}" for n, reason in left.items()) or "no layer is a table of tokens"
            raise OptionError("row_groups", self.row_groups, f"1: {why}")
        method = Method(self.method, self.num_cores, {}, self.modes or {}, row_groups=groups)
        chosen = {layer.name: layer.module for layer in taken if not layers.is_factorized(layer.module)}
        costs = costs_of(self.budget_of, self.budget_over, chosen, model, example, self.method)
        least = costs.total
        for name, module in chosen.items():
            options = {k: v for k, v in method.options(name).items() if not k.endswith("_covariance")}
            ranks = self.of_layer(name).get("ranks")
            try:
                smallest = tt.smallest_forms(module, ranks=ranks, **options)
            except (TypeError, ValueError) as error:
                key = "modes" if "modes" in options else "num_cores" if ranks is None else "ranks"
                raise OptionError(key, getattr(self, key), f"what fits {name}: {error}") from error
            if self.budget is not None:
                *forms, (dense, _) = costs.of(name, module, smallest)
                least -= max(0, dense - min((cost for cost, _ in forms), default=dense))
        if self.budget is not None and int(self.budget * costs.total) < least:
            least_of = "which every layer at ranks of 1 takes"
            expected = f">= {least / costs.total:.4g} of {costs.total:,} {costs.unit}, {least_of}"
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
        raise NothingCompressed("rank", self.rank, f"a smaller one, or other layers: {reasons_of(skipped)}")


def _weight_shape(layer: nn.Module) -> Sequence[int]:
    """[M, N] of a layer's weight as a matrix."""
    shape: Any = layer.dense_shape if layers.is_factorized(layer) else layers.plain(layer).weight.shape
    return shape[0], math.prod(shape[1:])


def _not_fitted(layer: layers.Layer) -> str | None:
    """Why a layer is not fitted to its inputs; None where it may be."""
    if len(layer.members) > 1:
        return f"one weight of {', '.join(layer.members)}"
    return None if layers.is_matrix(layer.module) else f"a {type(layer.module).__name__}"


def _not_in_groups(layer: layers.Layer) -> str | None:
    """Why the rows of a table are in no groups; None where they may be."""
    if len(layer.members) > 1:
        return f"one weight of {', '.join(layer.members)}"
    return "its gradients are sparse" if layers.plain(layer.module).sparse else None


def _fresh(layer: nn.Module, *, make: Make) -> nn.Module | tt.Skipped:
    """Fresh factors whose weight has the mean square of the layer's own: tables of 0.02 are not to start at 1."""
    new: Any = make(layer)
    if not isinstance(new, tt.Skipped):
        old: Any = layer
        weight = old.to_dense() if layers.is_factorized(layer) else layers.plain(layer).weight
        new.reset_parameters(gain=new.gain_of(float(weight.detach().square().mean().sqrt())))
    return new


def _check_fit(names: Sequence[str], key: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(surgery.matches(name, [pattern], []) for name in names):
            raise OptionError(
                key, pattern, f"a pattern that fits one of the layers {', '.join(names) or '(none)'}"
            )
