"""Where quantization starts: cores in the gauge that rounds best, and what each step of that is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from compresskd import layers, measure, tt
from compresskd.compression.quantization import Quantization
from compresskd.layers.registry import type_of
from compresskd.quant.cores import QuantizedCores, grids_of, quantize_cores
from compresskd.quant.environments import inner_product
from compresskd.quant.feedback import (
    GPTQ,
    NEAREST,
    error_of_outputs,
    fit_second,
    round_with_errors_fed_back,
)
from compresskd.quant.pack import QuantizedTensor, quantize_tensor
from compresskd.quant.pair import Pair, product_of, quantize_pair
from compresskd.quant.targets import CORES, Target, find_targets
from compresskd.tt.layers.grouped import GroupedEmbedding

# Numbers of a pair of cores that are tried in a learned gauge, too: with 14 times as many, one sweep of least squares
# takes more than four minutes.
_MOST_IN_GAUGE = 2**14


@dataclass(frozen=True)
class Start:
    """Integers by parameter name, and relative errors of each layer by step."""

    tensors: dict[str, QuantizedTensor] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def start_quantized(
    model: nn.Module,
    quantization: Quantization,
    *,
    keep_integers: bool,
    covariances: Mapping[str, Tensor],
    seed: int,
    num_steps: int = 300,
) -> Start:
    """Bring the cores of `model` into the gauge that rounds best, in place, and find scales for all weights.

    Args:
        keep_integers: load the rounded values, for a model that is not trained on: least squares chose integers that
            are not the nearest. Else the exact cores in the new gauge are loaded.
        covariances: [N, N] second moments of the inputs by layer; a layer without counts the error of its weight.
        seed: of the start of the gauge.
        num_steps: of learning it.
    """
    start, spec = Start(), quantization.spec()
    by_layer: dict[str, list[Target]] = {}
    for target in find_targets(model):
        if spec.bits_of(target.owner):
            by_layer.setdefault(target.owner, []).append(target)
    for name, targets in by_layer.items():
        weights = [target.value.detach() for target in targets]
        layer = model.get_submodule(name)
        seen = _covariance_of(layer, targets, covariances)
        trains = _trains(layer, weights)
        rounded = None
        if quantization.rounding == GPTQ and _is_pair(layer):
            grids = grids_of(quantization.core_grid, spec.bits_of(name))
            granularities = [spec.granularity_of(target) for target in targets]
            pair = quantize_pair(weights, grids, granularities, seen, seed=seed)
            rounded = _Rounded(pair.tensors, pair.cores, dict(pair.errors))
        if trains and (rounded is None or sum(w.numel() for w in weights) <= _MOST_IN_GAUGE):
            options = {
                "method": quantization.core_start,
                "grid": quantization.core_grid,
                "granularity": spec.granularity_of(targets[0]),
                "input_covariance": covariances[name].cpu() if name in covariances else None,
                "num_steps": num_steps,
                "seed": seed,
            }
            found = [quantize_cores(train, spec.bits_of(name), **options) for train in trains]
            rounded = _better(_of_trains(weights, trains, found), rounded, weights, seen)
        if rounded is None:
            rounded = _of_matrices(weights, targets, quantization, seen)
        start.errors[name] = rounded.errors
        start.tensors.update((t.name, tensor) for t, tensor in zip(targets, rounded.tensors, strict=True))
        _load(targets, [t.dequantize() for t in rounded.tensors] if keep_integers else rounded.values)
    return start


@dataclass(frozen=True)
class _Rounded:
    """The weights of one layer: integers, the values that training starts from, and relative errors by step."""

    tensors: list[QuantizedTensor]
    values: list[Tensor]
    errors: dict[str, float]


def _of_trains(weights: list[Tensor], trains: list[list[Tensor]], found: list[QuantizedCores]) -> _Rounded:
    """What was found for the trains of a layer, in the shapes of the weights that these are made of."""
    tensors = (tensor for one in found for tensor in one.tensors)
    values = (core for one in found for core in one.cores)
    return _Rounded(
        [replace(t, integers=t.integers.reshape(w.shape)) for t, w in zip(tensors, weights, strict=True)],
        [value.reshape(w.shape) for value, w in zip(values, weights, strict=True)],
        _errors_together(trains, found),
    )


def _of_matrices(
    weights: list[Tensor], targets: list[Target], quantization: Quantization, covariance: Tensor | None
) -> _Rounded:
    """Ordinary weights, or those that a layer applies one after the other, each to the nearest.

    With errors fed back where that is asked for and inputs are known; the second matrix then is the one that does best
    after what has become of the first.
    """
    spec = quantization.spec()

    def nearest(w: Tensor, target: Target) -> QuantizedTensor:
        scales = quantization.initial_scale
        return quantize_tensor(w, spec.grid_of(target), spec.granularity_of(target), method=scales)

    plain = [nearest(w, target) for w, target in zip(weights, targets, strict=True)]
    errors = {"nearest": _relative_error(weights, plain)}
    if quantization.rounding != GPTQ or covariance is None:
        return _Rounded(plain, weights, errors)
    covariance = covariance.cpu()
    first = round_with_errors_fed_back(
        plain[0], weights[0].cpu(), covariance, output_dim=targets[0].output_dim
    )
    fed_back = [first]
    if len(weights) > 1:
        best, seen = fit_second(weights, first.dequantize(), covariance)
        fed_back.append(round_with_errors_fed_back(nearest(best.to(weights[1]), targets[1]), best, seen))
    exact = _rows(weights, targets)
    for way, tensors in ((NEAREST, plain), (GPTQ, fed_back)):
        rows = _rows([t.dequantize() for t in tensors], targets)
        errors[f"output_{way}"] = error_of_outputs(exact, rows, covariance)
    # the nearest to the values that training starts from are these integers
    return _Rounded(fed_back, [t.dequantize() for t in fed_back], errors)


def _is_pair(layer: nn.Module) -> bool:
    """Whether a layer's train has two cores, one with all of its outputs and one with all of its inputs."""
    cores = getattr(layer, CORES, None)
    if not isinstance(layer, tt.TTLinear | tt.TTConv2d) or not isinstance(cores, nn.ParameterList):
        return False
    outputs, *inputs = layer.dense_shape
    sides = {(outputs, 1), (1, math.prod(inputs))}
    return len(cores) == 2 and {tuple(core.shape[1:3]) for core in cores} == sides


def _better(
    gauged: _Rounded, pair: _Rounded | None, cores: list[Tensor], covariance: Tensor | None
) -> _Rounded:
    """Of a train rounded in its gauge and as a pair of matrices what changes its outputs less, with all errors."""
    if pair is None:
        return gauged
    exact = Pair.of(cores).product()
    over = torch.eye(exact.shape[1]) if covariance is None else covariance.cpu()
    best = min((gauged, pair), key=lambda each: error_of_outputs(exact, product_of(each.tensors), over))
    return replace(best, errors={**pair.errors, **gauged.errors})


def feeds_back(layer: nn.Module) -> bool:
    """Whether errors of its rounding can be fed back: it applies a matrix to every input alike, or several in turn."""
    return layers.is_matrix(layer) or getattr(layer, "OF_MATRICES", False) or _is_pair(layer)


def _covariance_of(
    layer: nn.Module, targets: list[Target], covariances: Mapping[str, Tensor]
) -> Tensor | None:
    """Of the inputs of the layer that applies a matrix, or several in turn; None where they are others."""
    in_turn = getattr(layer, "OF_MATRICES", False) or _is_pair(layer)
    if not in_turn and (targets[0].is_core or len(targets) > 1):
        return None
    return next((covariances[owner] for owner in targets[0].owners if owner in covariances), None)


def _rows(matrices: list[Tensor], targets: list[Target]) -> Tensor:
    """All outputs of the matrices that a layer applies in turn, as rows of one matrix of its inputs."""
    flat = [
        m.detach().cpu().float().movedim(target.output_dim, 0).flatten(1)
        for m, target in zip(matrices, targets, strict=True)
    ]
    return torch.cat([flat[0], *(m @ flat[0] for m in flat[1:])])


def _trains(layer: nn.Module, weights: list[Tensor]) -> list[list[Tensor]]:
    """The trains that a layer is made of, on the CPU: its cores, or the pair of factors of each group of rows."""
    weights = [weight.cpu() for weight in weights]
    if isinstance(getattr(layer, CORES, None), nn.ParameterList):
        return [weights]
    if isinstance(layer, GroupedEmbedding):
        return [
            [rows[None, :, None], basis[:, None, :, None]]
            for rows, basis in zip(weights[::2], weights[1::2], strict=True)
        ]
    return []


def _errors_together(trains: list[list[Tensor]], found: list[QuantizedCores]) -> dict[str, float]:
    """The relative errors of a layer by step, of those of its trains, whose tables are of different rows."""
    if len(found) == 1:
        return dict(found[0].errors)
    squares = [float(inner_product(train, train)) for train in trains]
    total = sum(squares) or 1.0

    def together(step: str) -> float:
        return (
            sum(share * one.errors[step] ** 2 for share, one in zip(squares, found, strict=True)) / total
        ) ** 0.5

    return {step: together(step) for step in found[0].errors}


@torch.no_grad()
def _load(targets: list[Target], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.value.copy_(value)


def _relative_error(weights: list[Tensor], tensors: list[QuantizedTensor]) -> float:
    pairs = list(zip(weights, tensors, strict=True))
    error = sum(float((t.dequantize() - w.float()).square().sum()) for w, t in pairs)
    norm = sum(float(w.float().square().sum()) for w in weights)
    return (error / norm) ** 0.5 if norm else 0.0


def describe(model: nn.Module, start: Start) -> dict[str, dict[str, Any]]:
    """Of each layer that is to be quantized: kind, size, bits, grid, granularity and the errors of its start."""
    described: dict[str, dict[str, Any]] = {}
    for target in find_targets(model):
        tensor = start.tensors.get(target.name)
        if tensor is None or target.owner in described:
            continue
        layer = model.get_submodule(target.owner)
        described[target.owner] = {
            "kind": type_of(layer).__name__,
            "num_parameters": measure.num_parameters(layer),
            "bits": tensor.grid.bits,
            "grid": tensor.grid.kind,
            "granularity": tensor.granularity.plain(),
            "errors": start.errors[target.owner],
        }
        for name in ("ranks", "num_parameters_dense"):
            if hasattr(layer, name):
                value = getattr(layer, name)
                described[target.owner][name] = list(value) if isinstance(value, tuple) else value
        for owner in target.owners[1:]:
            kind = type_of(model.get_submodule(owner)).__name__
            described[owner] = {"kind": kind, "bits": tensor.grid.bits, "weights_of": target.owner}
    return described
