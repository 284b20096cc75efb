"""Post-training quantization of a tensor train: `quantize_cores`, the three methods behind one name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compresskd.options import OptionError
from compresskd.quant.als import refine
from compresskd.quant.environments import Weights, relative_error, separable_covariance
from compresskd.quant.gauge import Gauged, learn_gauge
from compresskd.quant.granularity import Granularity, PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.pack import QuantizedTensor, quantize_tensor

CORE_METHODS = ("nearest", "gauge", "gauge_als")


@dataclass(frozen=True)
class QuantizedCores:
    """A quantized train, and what each step was worth.

    `tensors` are the integers; `cores` float32 cores of the exact product in the gauge that was found, the
    start of quantization-aware training together with `tensors`. `errors` are relative errors of the product
    by step: `nearest`, `gauge`, `gauge_als`, as far as the method went, with an input covariance those of
    the layer's output under its separable form. `trail` are the errors before the first and after every
    sweep of least squares.
    """

    tensors: list[QuantizedTensor]
    cores: list[Tensor]
    errors: Mapping[str, float]
    trail: list[float] = field(default_factory=list)


def quantize_cores(
    cores: Sequence[Tensor],
    bits: int,
    *,
    method: str = "gauge_als",
    grid: str = "best",
    granularity: Granularity | None = None,
    input_covariance: Tensor | None = None,
    num_steps: int = 300,
    num_sweeps: int = 12,
    seed: int = 0,
) -> QuantizedCores:
    """Round the cores [r_{k-1}, m_k, n_k, r_k] of a train to few bits, so that their product suffers least.

    Args:
        cores: neighbouring TT-ranks must agree; any floating dtype. bits: 2, 3, 4 or 8. method: `nearest`
        rounds at the scale of least squared error; `gauge` learns orthogonal matrices between the
            cores first; `gauge_als` then chooses the integers by alternating least squares.
        grid: a kind of grid; `best` is symmetric at 4 and 8 bits, and at 2 and 3 whichever of symmetric and
            half-integer gives the smaller error.
        granularity: which elements of a core share a scale, one scale a core by default. input_covariance:
        [N, N] second moments of the layer's inputs: the error that counts is then that of its
            outputs, under the separable covariance that is nearest.
        num_steps: of learning the gauge.
        num_sweeps: of least squares, at most.
        seed: of the start of the gauge.

    Raises:
        ValueError: an unknown method, grid or number of bits, cores that do not fit each other or are not
        finite, a
            covariance of the wrong shape.
    """
    granularity = granularity or PerTensor()
    _check(cores, method)
    grids = grids_of(grid, bits)
    weights = None
    if input_covariance is not None:
        weights = separable_covariance(input_covariance, [core.shape[2] for core in cores])
    plain = [
        Gauged([core.detach() for core in cores], [quantize_tensor(core, g, granularity) for core in cores])
        for g in grids
    ]
    found = _best(cores, plain, weights)
    errors = {"nearest": _error(cores, found, weights)}
    trail: list[float] = []
    if method != "nearest":
        learned = [
            learn_gauge(cores, g, granularity, weights=weights, num_steps=num_steps, seed=seed) for g in grids
        ]
        found = _best(cores, [*learned, found], weights)
        errors["gauge"] = _error(cores, found, weights)
    if method == "gauge_als":
        refined = refine(cores, found.tensors, weights=weights, num_sweeps=num_sweeps)
        found, trail = Gauged(found.cores, refined.tensors), refined.errors
        errors["gauge_als"] = _error(cores, found, weights)
    return QuantizedCores(found.tensors, [core.float() for core in found.cores], errors, trail)


def grids_of(kind: str, bits: int) -> list[Grid]:
    """The grids of a kind; of `best` those of which whichever gives the smaller error is taken."""
    kinds = [kind] if kind != "best" else (["symmetric", "half_integer"] if bits < 4 else ["symmetric"])
    return [Grid(bits, each) for each in kinds]


def _best(cores: Sequence[Tensor], candidates: Sequence[Gauged], weights: Weights) -> Gauged:
    return min(candidates, key=lambda candidate: _error(cores, candidate, weights))


def _error(cores: Sequence[Tensor], found: Gauged, weights: Weights) -> float:
    return relative_error(cores, [tensor.dequantize() for tensor in found.tensors], weights)


def _check(cores: Sequence[Tensor], method: str) -> None:
    if method not in CORE_METHODS:
        raise OptionError("method", method, ", ".join(CORE_METHODS))
    if not cores or any(core.dim() != 4 for core in cores):
        raise ValueError(
            f"expected cores [r, m, n, r'], got the shapes {[tuple(core.shape) for core in cores]}"
        )
    for k in range(len(cores) - 1):
        if cores[k].shape[3] != cores[k + 1].shape[0]:
            raise ValueError(
                f"cores {k} and {k + 1} do not fit: shapes {tuple(cores[k].shape)} and {tuple(cores[k + 1].shape)}"
            )
    for k, core in enumerate(cores):
        if not torch.isfinite(core).all():
            raise ValueError(f"core {k} of shape {tuple(core.shape)} is not finite: nothing to quantize")
