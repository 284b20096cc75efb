"""The one front door: from a dense layer and a target for its size to a factorized layer, or why it stays dense."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers
from compresskd.layers.registry import Plain
from compresskd.tt.decompose.cores import balance, core_shapes
from compresskd.tt.decompose.metric import Metric, check_covariance
from compresskd.tt.decompose.modes import (
    Modes,
    conv_modes,
    linear_modes,
    nearest_factors,
    stage_modes,
    svd_modes,
)
from compresskd.tt.decompose.ranks import SizeTarget
from compresskd.tt.decompose.row_groups import Table, groups_of
from compresskd.tt.decompose.search import Candidate, CurvePoint, curve, search
from compresskd.tt.decompose.skipped import Skipped
from compresskd.tt.decompose.tt_svd import check_modes
from compresskd.tt.execution.machine import reference_machine
from compresskd.tt.execution.planner import rank_plans
from compresskd.tt.layers.conv import TTConv2d
from compresskd.tt.layers.conv1d import one_dimensional, two_dimensional
from compresskd.tt.layers.cp import cp_conv, cp_linear
from compresskd.tt.layers.embedding import TTEmbedding
from compresskd.tt.layers.grouped import GroupedEmbedding
from compresskd.tt.layers.interpolative import InterpolativeLinear
from compresskd.tt.layers.linear import TTLinear
from compresskd.tt.layers.padded_rows import PaddedRows, scale_of
from compresskd.tt.layers.tucker import tucker2_cores, tucker_linear

INTERPOLATIVE = "interpolative"
METHODS = ("tensor_train", "svd", INTERPOLATIVE, "tucker", "cp")
ROUNDING = 1e-6
BATCHES = (32, 256)

ModeChoice = Modes | Sequence[Sequence[int]]


def factorize(
    module: nn.Module,
    *,
    rank: int | None = None,
    ranks: Sequence[int] | None = None,
    tolerance: float | None = None,
    energy: float | None = None,
    num_parameters: int | None = None,
    method: str = "tensor_train",
    input_covariance: Tensor | None = None,
    output_covariance: Tensor | None = None,
    modes: ModeChoice | None = None,
    num_cores: int | None = None,
    row_groups: int = 1,
    keep_larger: bool = False,
) -> nn.Module | Skipped:
    """The layer factorized by `method` to exactly one size target, in the mode of training of `module`.

    Only a layer whose computation is known has such a form, see `compresskd.layers.registry`; parametrized weights are
    taken as they are in evaluation.

    Args:
        module: nn.Linear, nn.Conv1d, nn.Conv2d or nn.Embedding, or a layer that is known or was registered.
        rank: the largest TT-rank (the bond dimension between cores). Among modes, the one that does best against the
            low-rank SVD of as many parameters; of an embedding, if it loses no more than the SVD of that rank.
        ranks: one for each TT-rank, together with `modes`.
        tolerance: relative error of the weight, or in the metric that the covariances make.
        energy: share of the squared norm kept; the same as tolerance = sqrt(1 - energy).
        num_parameters: a budget for the cores; the bias is not counted.
        method: "tensor_train" (searches the modes, the low-rank SVD among them), "svd", "interpolative" (of a linear
            layer the SVD in fewer parameters, see `InterpolativeLinear`; of others the SVD), "tucker" or "cp".
        input_covariance: E[x x^T] over the layer's inputs, [in_features, in_features]; for a convolution of the
            unfolded patches [I kh kw, I kh kw] (F.unfold's order) or of the channels [I, I]; for an embedding [D, D]
            the metric of its rows, such as that of a head with the same weight. The error that counts is then that of
            the layer's output. A vector is a diagonal matrix.
        output_covariance: E[g g^T] over gradients by the layer's outputs, [out_features, out_features], or its
            diagonal [out_features]; for an embedding [V] how often each row is asked for. The error D that counts is
            tr(G D C D^T), see `compresskd.tt.decompose.metric`.
        modes: instead of the search; (input_dims, output_dims) for a linear layer, (embedding_dims,
            vocabulary_dims) for an embedding, the stages' kernels such as ((1, 1), (3, 3), (1, 1)) for a convolution.
        num_cores: restricts the search.
        row_groups: of an embedding, in how many groups by how often they are asked for (`output_covariance`) its rows
            are, each with a rank of its own, see `GroupedEmbedding`; `rank` is then that of a low-rank SVD of as many
            parameters, and `ranks` has one for each group.
        keep_larger: return the factorized layer although it takes as many parameters as the dense one, or more: to
            see at full rank that nothing else changes.

    Raises:
        TypeError: `module` has no factorized form at all.
        ValueError: no size target or several, values out of range, weights not finite, modes that do not fit.
    """
    target = SizeTarget(rank, None if ranks is None else tuple(ranks), tolerance, energy, num_parameters)
    if method not in METHODS:
        raise ValueError(f"expected method to be one of {', '.join(METHODS)}; got {method!r}")
    reason = refusal(module, method)
    if reason is not None:
        return reason
    layer = _plain(module)
    if method in ("tucker", "cp"):
        given = (input_covariance, output_covariance, num_cores, target.ranks)
        if any(each is not None for each in given):
            raise ValueError(
                f"method {method!r} takes no covariance, num_cores or ranks: use tensor_train or svd"
            )
        built = _by_rank(layer, target, method, modes, keep_larger)
    elif (table := _table(layer, input_covariance, output_covariance, row_groups)) is not None:
        built = _grouped(layer, table, target, keep_larger)
    elif _is_interpolative(layer, method):
        built = _interpolated(layer, target, _metric(layer, input_covariance, output_covariance), keep_larger)
    else:
        metric = _metric(layer, input_covariance, output_covariance)
        found = _search(layer, target, method, metric, modes, num_cores, keep_larger)
        reason = _unreached(found[0], target, layer.weight.numel())
        built = _build(layer, found[0]) if reason is None else reason
    return _finished(built, module) if isinstance(built, nn.Module) else built


def _finished(built: nn.Module, module: nn.Module) -> nn.Module:
    """The layer made of the plain one, as one that stands for `module` itself."""
    if isinstance(module, nn.Conv1d):
        built = one_dimensional(built)
    elif isinstance(built, PaddedRows):
        built.scale = scale_of(module)
    return built.train(module.training)


def _plain(module: nn.Module) -> Any:
    """The plain layer of the same weight that is decomposed: a one-dimensional convolution as one of two."""
    return two_dimensional(layers.plain(module))


def candidates(
    module: nn.Module,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    energy: float | None = None,
    num_parameters: int | None = None,
    input_covariance: Tensor | None = None,
    output_covariance: Tensor | None = None,
    num_cores: int | None = None,
) -> list[Candidate]:
    """What `factorize` chooses from, the best first, each with its modes, ranks, parameters and error."""
    target = SizeTarget(rank, None, tolerance, energy, num_parameters)
    reason = refusal(module)
    if reason is not None:
        raise ValueError(f"expected a layer that has a factorized form: {reason.reason}")
    layer = _plain(module)
    metric = _metric(layer, input_covariance, output_covariance)
    return _search(layer, target, "tensor_train", metric, None, num_cores)


def error_curve(
    module: nn.Module,
    *,
    method: str = "tensor_train",
    input_covariance: Tensor | None = None,
    output_covariance: Tensor | None = None,
    modes: ModeChoice | None = None,
    num_cores: int | None = None,
    row_groups: int = 1,
    max_points: int = 64,
) -> list[CurvePoint]:
    """The sizes that a layer can have, by rising parameters and falling error, convex: for an allocator over layers.

    `factorize(module, ranks=point.ranks, modes=point.modes)` realises a point; the error reached is at most the
    point's, which is a bound from the spectra of the unfoldings. Empty where no form is smaller than dense.

    Raises:
        ValueError: `method` is "tucker" or "cp", or weights are not finite.
    """
    if method in ("tucker", "cp"):
        raise ValueError(f"expected method tensor_train, svd or interpolative, got {method!r}")
    if refusal(module) is not None:
        return []
    layer = _plain(module)
    table = _table(layer, input_covariance, output_covariance, row_groups)
    if table is not None:
        return _grouped_curve(table, max_points)
    weight, options = layer.weight.detach().flatten(1), _modes(layer, method, modes, num_cores)
    metric = _metric(layer, input_covariance, output_covariance)
    saves = _is_interpolative(layer, method)
    return curve(weight, options, metric=metric, max_points=max_points, interpolative=saves)


def empty_form(module: nn.Module, point: CurvePoint, *, method: str = "tensor_train") -> nn.Module:
    """The layer that `factorize` makes of a point of the curve, on the meta device: shapes without values."""
    layer = _plain(module)
    if _is_interpolative(layer, method):
        made = InterpolativeLinear(
            layer.in_features,
            layer.out_features,
            (point.ranks[0],),
            bias=layer.bias is not None,
            device="meta",
        )
        return made.train(module.training)
    ranks, modes = (1, *point.ranks, 1), point.modes
    cores = [
        torch.empty(ranks[k], m, n, ranks[k + 1], dtype=layer.weight.dtype, device="meta")
        for k, (m, n) in enumerate(zip(modes.output_dims, modes.input_dims, strict=True))
    ]
    return _finished(_layer_of(layer, modes, cores), module)


def smallest_forms(
    module: nn.Module,
    *,
    method: str = "tensor_train",
    ranks: Sequence[int] | None = None,
    modes: ModeChoice | None = None,
    num_cores: int | None = None,
    row_groups: int = 1,
) -> list[CurvePoint]:
    """The forms with ranks of 1 of all modes that would be searched, by shapes alone, of unknown errors.

    Args:
        module, method, modes, num_cores: as in `factorize`, of a method with an error curve.
        ranks: one for each TT-rank; only their number is looked at.

    Raises:
        TypeError, ValueError: whatever `factorize` would refuse of these.
    """
    if refusal(module) is not None:
        return []
    layer = _plain(module)
    if isinstance(layer, nn.Embedding) and row_groups > 1:
        (rows, width), most = (
            layer.weight.shape,
            len(groups_of(torch.ones(len(layer.weight)), row_groups).unique()),
        )
        return [CurvePoint(rows + most * width, (1,) * most, math.nan, math.nan, svd_modes(width, rows))]
    options = _modes(layer, method, modes, num_cores)
    if ranks is not None and modes is None:
        raise ValueError("expected modes together with ranks: they say where the ranks are")
    num_outputs, num_inputs = layer.weight.flatten(1).shape
    for each in options:
        check_modes(num_inputs, num_outputs, each.input_dims, each.output_dims)
        if ranks is not None and len(ranks) != len(each.sizes) - 1:
            raise ValueError(
                f"expected {len(each.sizes) - 1} ranks for the {len(each.sizes)} cores of {each}; got {ranks}"
            )
    saved = int(_is_interpolative(layer, method))
    return [
        CurvePoint(sum(each.sizes) - saved, (1,) * (len(each.sizes) - 1), math.nan, math.nan, each)
        for each in options
    ]


def _table(module: Plain, inputs: Tensor | None, outputs: Tensor | None, row_groups: int) -> Table | None:
    """The table in groups of rows; None where it is to be none, or nothing says how often rows are asked for."""
    if row_groups < 2 or outputs is None or not isinstance(module, nn.Embedding) or module.sparse:
        return None
    metric = _metric(module, inputs, outputs)
    assert metric is not None and metric.outputs is not None  # noqa: PT018 - outputs are given
    if metric.outputs.ndim > 1:
        raise ValueError(
            "expected output_covariance [V] of a table in groups: how often each row is asked for"
        )
    return Table(module.weight.detach(), groups_of(metric.outputs, row_groups), metric)


def _grouped(module: Any, table: Table, target: SizeTarget, keep_larger: bool) -> nn.Module | Skipped:
    """The ranks of groups that a target asks for: the first that are exact enough, or the last small enough."""
    (rows, width), dense = table.weight.shape, table.weight.numel()
    if target.ranks is not None:
        chosen = target.ranks
    elif target.error is not None:
        most = target.error**2 * table.total * (1 + 1e-9)
        steps = table.steps()
        chosen = next((ranks for ranks in steps if table.cost_of(ranks) <= most), None)
        assert chosen is not None  # full ranks lose nothing
    else:
        allowed = target.num_parameters or (target.rank or 0) * (rows + width)
        fitting = [ranks for ranks in table.steps() if table.size_of(ranks) <= allowed]
        chosen = fitting[-1] if fitting else (1,) * len(table.counts)
    count = table.size_of(chosen)
    if target.num_parameters is not None and count > target.num_parameters:
        return Skipped(f"budget: {target.num_parameters} parameters, the smallest form has {count}")
    if count >= dense and not keep_larger:
        return _break_even(count, max(chosen), dense)
    return GroupedEmbedding.of_table(table, chosen, module)


def _grouped_curve(table: Table, max_points: int) -> list[CurvePoint]:
    rows, width = table.weight.shape
    found = [ranks for ranks in table.steps() if table.size_of(ranks) < table.weight.numel()]
    if len(found) > max_points:
        places = {round(i * (len(found) - 1) / (max_points - 1)) for i in range(max_points)}
        found = [found[place] for place in sorted(places)]
    total = max(table.total, 1e-300)
    return [
        CurvePoint(table.size_of(ranks), ranks, (lost / total) ** 0.5, lost, svd_modes(width, rows))
        for ranks in found
        for lost in [max(0.0, table.cost_of(ranks))]
    ]


def refusal(module: nn.Module, method: str = "tensor_train") -> Skipped | None:
    """Why a layer has no form of this method; raises where nothing like it has one, or its weights are broken."""
    obstacle = layers.obstacle(module)
    if obstacle is not None and not isinstance(module, layers.PLAIN):
        raise TypeError(f"expected {layers.NAMES}, got {type(module).__name__}")
    if obstacle is not None:
        return Skipped(obstacle)
    plain = layers.plain(module)
    if isinstance(plain, nn.Conv1d | nn.Conv2d) and plain.groups != 1:
        return Skipped(f"groups={plain.groups}: no factorized form of a grouped convolution")
    if isinstance(plain, nn.Embedding) and (plain.max_norm is not None or plain.scale_grad_by_freq):
        return Skipped("max_norm and scale_grad_by_freq: rows computed from cores do not support them")
    if isinstance(plain, nn.Embedding) and method in ("tucker", "cp"):
        return Skipped(f"an embedding has no form of method {method}: use tensor_train or svd")
    if not bool(plain.weight.isfinite().all()):
        raise ValueError("expected finite weights, got NaN or infinity: check the checkpoint or the training")
    return None


def _unreached(best: Candidate, target: SizeTarget, dense: int) -> Skipped | None:
    """Why even the best candidate does not give what was asked for."""
    if best.decomposition is None:
        return _break_even(best.num_parameters, max(best.ranks, default=1), dense)
    if target.num_parameters is not None and best.num_parameters > target.num_parameters:
        return Skipped(
            f"budget: {target.num_parameters} parameters, the smallest form has {best.num_parameters}"
        )
    if target.error is not None and best.error > target.error * (1 + 1e-6) + ROUNDING:
        return Skipped(
            f"break-even: no form of relative error {target.error:.4g} is smaller than {dense} dense"
        )
    return None


def _break_even(count: int, rank: int, dense: int) -> Skipped:
    return Skipped(f"break-even: {count} parameters at rank {rank}, {dense} dense")


def _search(
    module: Plain,
    target: SizeTarget,
    method: str,
    metric: Metric | None,
    modes: ModeChoice | None,
    num_cores: int | None,
    keep_larger: bool = False,
) -> list[Candidate]:
    options = _modes(module, method, modes, num_cores)
    if target.ranks is not None and len(options) != 1:
        raise ValueError("expected modes together with ranks: they say where the ranks are")
    weight = module.weight.detach().flatten(1)
    cost = linear_seconds if isinstance(module, nn.Linear) else None
    # The order of a vocabulary says nothing, so that a train of several cores, whose rank has far fewer parameters
    # than that of an SVD of the table, keeps a few common rows and drops the others: as good as an SVD of so few
    # parameters, and of no use beside layers that keep what the rank lets them keep.
    strict = isinstance(module, nn.Embedding) and target.rank is not None
    return search(
        weight, options, target, metric=metric, keep_larger=keep_larger, cost=cost, as_good_as_svd=strict
    )


def linear_seconds(modes: Modes, ranks: Sequence[int]) -> float:
    """What a few batches take through a linear layer in these modes on the reference machine, in training and after."""
    shapes = tuple(core_shapes(modes.input_dims, modes.output_dims, ranks))
    on = reference_machine(1)
    return sum(
        rank_plans(shapes, rows, training=training, machine=on)[0].seconds
        for rows in BATCHES
        for training in (True, False)
    )


def _modes(module: Plain, method: str, modes: ModeChoice | None, num_cores: int | None) -> list[Modes]:
    if isinstance(modes, Modes):
        return [modes]
    if isinstance(module, nn.Conv2d):
        return _conv_modes(module, method, modes, num_cores)
    num_outputs, num_inputs = module.weight.shape
    if modes is not None:
        input_dims, output_dims = modes
        return [Modes(tuple(input_dims), tuple(output_dims))]
    if method in ("svd", INTERPOLATIVE):
        return [svd_modes(num_inputs, num_outputs)]
    return linear_modes(num_inputs, num_outputs, num_cores=num_cores)


def _conv_modes(
    module: nn.Conv2d, method: str, stages: Sequence[Sequence[int]] | None, num_cores: int | None
) -> list[Modes]:
    kernel = (module.kernel_size[0], module.kernel_size[1])
    if stages is None and method in ("svd", INTERPOLATIVE):
        stages = (kernel, (1, 1))
    if stages is None:
        return conv_modes(module.in_channels, module.out_channels, kernel, num_cores=num_cores)
    pairs = [(stage[0], stage[1]) for stage in stages]
    if math.prod(a for a, _ in pairs) != kernel[0] or math.prod(b for _, b in pairs) != kernel[1]:
        raise ValueError(f"expected stages that make a {kernel[0]}x{kernel[1]} kernel, got {pairs}")
    return [stage_modes(pairs, module.in_channels, module.out_channels)]


def _is_interpolative(module: Plain, method: str) -> bool:
    return method == INTERPOLATIVE and isinstance(module, nn.Linear)


def _interpolated(
    module: nn.Linear, target: SizeTarget, metric: Metric | None, keep_larger: bool
) -> nn.Module | Skipped:
    """The low-rank SVD of the target, in the parameters that an interpolative layer takes for it."""
    weight = module.weight.detach()
    (M, N), wanted = weight.shape, target

    def count(rank: int) -> int:
        return rank * (M + N - rank)

    if target.num_parameters is not None:
        most = _largest(lambda r: count(r) <= (target.num_parameters or 0), min(M, N))
        wanted = SizeTarget(rank=max(1, most))
    found = search(weight, [svd_modes(N, M)], wanted, metric=metric, keep_larger=True)[0]
    found = replace(found, num_parameters=count(found.ranks[0]))
    if found.num_parameters >= M * N and not keep_larger:
        return _break_even(found.num_parameters, found.ranks[0], M * N)
    reason = _unreached(found, target, M * N)
    if reason is not None or found.decomposition is None:
        return reason or _break_even(found.num_parameters, found.ranks[0], M * N)
    return InterpolativeLinear.of_cores(found.decomposition.cores, module.bias)


def _metric(module: Plain, inputs: Tensor | None, outputs: Tensor | None) -> Metric | None:
    if inputs is None and outputs is None:
        return None
    if outputs is not None:
        outputs = check_covariance(outputs, len(module.weight), "output_covariance")
    return Metric(None if inputs is None else _input_covariance(module, inputs), outputs)


def _input_covariance(module: Plain, given: Tensor) -> Tensor:
    size = module.weight[0].numel()
    if isinstance(module, nn.Conv2d) and given.shape == (module.in_channels, module.in_channels) != (
        size,
        size,
    ):
        # With only the channels known, the places of a patch count alike and as if uncorrelated.
        places = torch.eye(math.prod(module.kernel_size), dtype=torch.float64, device=given.device)
        given = torch.kron(given.double(), places)
    return check_covariance(given, size)


def _build(module: Plain, best: Candidate) -> nn.Module:
    assert best.decomposition is not None
    return _layer_of(module, best.modes, balance(best.decomposition.cores))


def _layer_of(module: Plain, modes: Modes, cores: Sequence[Tensor]) -> nn.Module:
    if isinstance(module, nn.Linear):
        return TTLinear.from_cores(
            cores, module.bias, in_features=module.in_features, out_features=module.out_features
        )
    if isinstance(module, nn.Conv2d):
        assert modes.stages is not None
        return TTConv2d.from_cores(cores, module, modes.stages)
    assert isinstance(module, nn.Embedding)  # a convolution of one dimension comes as one of two
    return TTEmbedding.from_cores(cores, module)


def _by_rank(
    module: Plain, target: SizeTarget, method: str, modes: ModeChoice | None, keep_larger: bool
) -> nn.Module | Skipped:
    """Tucker and CP have one rank: the one asked for, the largest in a budget, or the least that is exact enough."""
    make = _maker(module, method, modes)
    dense = module.weight.numel()
    if target.rank is not None:
        chosen = target.rank
    elif target.num_parameters is not None:
        chosen = _largest(
            lambda r: _count(module, method, modes, r) <= min(target.num_parameters or 0, dense - 1), dense
        )
    else:
        largest = _largest(lambda r: _count(module, method, modes, r) < dense, dense)
        chosen = _least(lambda r: _error(module, make(r)) <= (target.error or 0.0), largest)
    count = _count(module, method, modes, max(chosen, 1))
    if chosen < 1 or (count >= dense and not keep_larger):
        return _break_even(count, max(chosen, 1), dense)
    return make(chosen)


def _maker(module: Plain, method: str, modes: ModeChoice | None) -> Callable[[int], nn.Module]:
    if isinstance(module, nn.Linear):
        input_dims, output_dims = _tensor_dims(module, modes)
        build = tucker_linear if method == "tucker" else cp_linear
        return lambda r: build(module, input_dims, output_dims, r)
    if isinstance(module, nn.Conv2d):
        if modes is not None:
            raise ValueError(f"expected no modes for method {method!r} of a convolution: its form is fixed")
        if method == "cp":
            return lambda r: cp_conv(module, r)
        stages = [(1, 1), (module.kernel_size[0], module.kernel_size[1]), (1, 1)]
        return lambda r: TTConv2d.from_cores(balance(tucker2_cores(module.weight, r)), module, stages)
    raise AssertionError("an embedding was refused before")


def _tensor_dims(module: nn.Linear, modes: ModeChoice | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes without padding: those given, or two of each side, as near to square as the sizes allow."""
    sizes = (module.in_features, module.out_features)
    if modes is None:
        found = tuple(nearest_factors(size, (0.5, 0.5), padding=False) for size in sizes)
        return found[0], found[1]
    dims = (modes.input_dims, modes.output_dims) if isinstance(modes, Modes) else modes
    if any(math.prod(part) != size for part, size in zip(dims, sizes, strict=True)):
        raise ValueError(f"expected modes whose products are {sizes}, got {dims}")
    return tuple(dims[0]), tuple(dims[1])


def _count(module: Plain, method: str, modes: ModeChoice | None, rank: int) -> int:
    linear = isinstance(module, nn.Linear)
    dims = sum(_tensor_dims(module, modes), ()) if linear else tuple(module.weight.shape)
    if method == "cp":
        return rank * sum(dims)
    split = dims if linear else dims[:2]
    ranks = [min(rank, size) for size in split]
    return math.prod(ranks) * math.prod(dims[len(split) :]) + sum(
        r * n for r, n in zip(ranks, split, strict=True)
    )


def _error(module: Plain, layer: nn.Module) -> float:
    dense: Tensor = layer.to_dense()  # pyright: ignore[reportCallIssue]
    norm = float(module.weight.detach().double().norm())
    return float((dense.detach().double() - module.weight.detach().double()).norm()) / norm if norm else 0.0


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 0 to `most` that fits; what fits is downward closed."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _least(holds: Callable[[int], bool], most: int) -> int:
    """The least number from 1 to `most` that holds, else most + 1."""
    low, high = 1, most + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
