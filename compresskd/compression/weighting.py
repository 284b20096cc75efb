"""How an error of each layer's weight counts: by nothing, by the layer's inputs, or by what comes after it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresskd.compression.calibration import LayerStatistics, is_table
from compresskd.tt.decompose.metric import RIDGE, Metric
from compresskd.tt.layers.padded_rows import scale_of

NONE, SCALE, INPUT, TWO_SIDED = "none", "input_scale", "input", "two_sided"
_TINY = 1e-30
WHITENINGS = (NONE, SCALE, INPUT, TWO_SIDED)
DAMPING: Mapping[str, tuple[float, float]] = {
    SCALE: (RIDGE, RIDGE),
    INPUT: (RIDGE, RIDGE),
    TWO_SIDED: (1e-3, 1e-2),
}


@dataclass(frozen=True)
class Weighting:
    """The error D [M, N] of a layer's weight, seen as a matrix, raises that of the model by weight tr(G D C D^T).

    Attributes:
        weight: of layers among each other.
        inputs: C [N, N]; of an embedding over the features of a row. None is the identity.
        outputs: G [M, M], or [M], its diagonal; of an embedding [V] how often each row is asked for.
    """

    weight: float
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @property
    def metric(self) -> Metric:
        """The metric tr(G D C D^T) of this layer alone.

        Inputs or gradients that are all 0 say nothing of the weight: with them any would be as good.
        """
        known = (c.double() if c is not None and bool(c.any()) else None for c in (self.inputs, self.outputs))
        return Metric(*known)


@dataclass(frozen=True)
class Shortage:
    """A covariance of fewer rows than it has sides: `rows` of the `wanted` that give it full rank."""

    layer: str
    of: str
    rows: int
    wanted: int


def weighting_of(layer: nn.Module, found: LayerStatistics, whitening: str) -> Weighting | None:
    """What calibration says of one layer, in the orientation of its plain weight [M, N]; None where it says nothing.

    A matrix y = W x has C of its inputs and G of its outputs. A row of an embedding is asked for with its frequency,
    which is the covariance of inputs that are all 0 but for one 1; its outputs are the features of a row. Rows count
    by the root of their frequency: the second-order change of the loss holds for small errors, and where a table loses
    half of its norm, to count by the frequency itself gives the parameters to a few hundred common words and loses the
    words that say what a text is about (SST-2 with a BERT of 4 layers at rank 16: 72.5 in place of 79.9 percent).
    Features count by the root of G, of G's trace, for the same reason (SST-2 with three layers of MiniLM, its table
    alone in four groups of rows at a thirteenth of its parameters: 83.5 in place of 82.8 percent on validation).
    """
    after = found.gradients if whitening == TWO_SIDED else None
    weight = found.positions if whitening == TWO_SIDED else found.sensitivity
    if is_table(layer):
        return Weighting(weight * scale_of(layer) ** 2, _root(after), _root(found.frequency))
    if found.covariance is None:
        return None
    inputs = found.covariance
    if whitening == SCALE:  # ASVD (Yuan et al. 2023, arXiv:2312.05821) at alpha = 1/2, of root mean squares
        inputs = inputs.diagonal().sqrt()
    return Weighting(weight, inputs, after)


def isotropic(found: LayerStatistics, whitening: str) -> float:
    """By how much an error of mean squared norm 1 at each position of a layer's output raises that of the model."""
    if whitening != TWO_SIDED or found.gradients is None:
        return found.sensitivity
    size = len(found.gradients)
    return found.positions * _trace(found.gradients, size) / size


def damped(weighting: Weighting, shares: Sequence[float]) -> Weighting:
    """With the diagonals of covariances raised by shares of their means, first of inputs, then of outputs."""
    inputs, outputs = (
        _raised(c, share) for c, share in zip((weighting.inputs, weighting.outputs), shares, strict=True)
    )
    return Weighting(weighting.weight, inputs, outputs)


def combined(weightings: Sequence[Weighting], shape: Sequence[int]) -> Weighting:
    """Of one weight [M, N] that several layers apply: what its error does to each of them adds up.

    A sum of Kronecker products is none; the one is taken whose partial traces are those of the sum.
    """
    if len(weightings) == 1:
        return weightings[0]
    M, N = shape
    outer = [(w.weight * _trace(w.outputs, M), w.inputs, N) for w in weightings]
    inner = [(w.weight * _trace(w.inputs, N), w.outputs, M) for w in weightings]
    total = sum(w.weight * _trace(w.outputs, M) * _trace(w.inputs, N) for w in weightings)
    if total <= 0:
        return weightings[0]
    return Weighting(1.0, _sum(outer, 1.0), _sum(inner, total))


def shortages(name: str, found: LayerStatistics, whitening: str) -> Iterator[Shortage]:
    """The covariances of a layer that cannot have full rank."""
    if whitening != SCALE and found.covariance is not None and found.num_rows < len(found.covariance):
        yield Shortage(name, "inputs", found.num_rows, len(found.covariance))
    if whitening == TWO_SIDED and found.gradients is not None and found.num_gradients < len(found.gradients):
        yield Shortage(name, "gradients", found.num_gradients, len(found.gradients))


def shortage_text(short: Iterable[Shortage], damping: Sequence[float]) -> str:
    """For people: what was seen too little of, and what stands for the rest."""
    worst = max(short, key=lambda each: each.wanted / max(1, each.rows))
    return (
        f"{worst.rows:,} rows for the covariance of {worst.wanted:,} {worst.of} of {worst.layer}: damping "
        f"{damping[worst.of == 'gradients']:g} stands for what was not seen"
    )


def _root(covariance: Tensor | None) -> Tensor | None:
    """The root of a covariance [N, N], or of its diagonal [N], scaled to the same trace."""
    if covariance is None:
        return None
    if covariance.ndim == 1:
        found = covariance.clamp_min(0.0).sqrt()
        return found * (covariance.sum() / found.sum().clamp_min(_TINY))
    values, vectors = torch.linalg.eigh(covariance.double())
    roots = values.clamp_min(0.0).sqrt()
    roots = roots * (values.sum() / roots.sum().clamp_min(_TINY))
    return ((vectors * roots) @ vectors.T).to(covariance.dtype)


def _raised(covariance: Tensor | None, share: float) -> Tensor | None:
    if covariance is None or share <= RIDGE:  # which every root has
        return covariance
    diagonal = covariance if covariance.ndim == 1 else covariance.diagonal()
    more = share * diagonal.mean()
    return covariance + (more if covariance.ndim == 1 else more * torch.eye(len(covariance)).to(covariance))


def _trace(covariance: Tensor | None, size: int) -> float:
    if covariance is None:
        return float(size)
    return float((covariance if covariance.ndim == 1 else covariance.diagonal()).double().sum())


def _sum(parts: Sequence[tuple[float, Tensor | None, int]], total: float) -> Tensor | None:
    """The weighted sum of covariances, None being the identity and vectors diagonals; None where all are None."""
    known = [(share / total, c) for share, c, _ in parts if c is not None]
    if not known:
        return None
    is_diagonal = all(c.ndim == 1 for _, c in known)
    size = parts[0][2]
    result = known[0][1].new_zeros((size,) if is_diagonal else (size, size))
    for share, c in known:
        (result if c.ndim == result.ndim else result.diagonal()).add_(c, alpha=share)
    rest = sum(share / total for share, c, _ in parts if c is None)
    (result if is_diagonal else result.diagonal()).add_(rest)
    return result
