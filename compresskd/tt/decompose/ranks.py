"""From a size target to the TT-ranks of one layer, by what each unfolding's spectrum says.

A `Tails` holds, for each TT-rank, the share of the squared norm that is lost when r singular values of that unfolding
are kept, for r = 0, 1, ...; the sum over the TT-ranks bounds the squared relative error of TT-SVD (Oseledets 2011,
theorem 2.2).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from compresskd.tt.decompose.cores import clip_ranks, max_ranks, num_parameters
from compresskd.tt.decompose.modes import Modes
from compresskd.tt.decompose.svd import leading_spectrum, spectrum, squared_norm
from compresskd.tt.decompose.tt_svd import interleave

FULL_SPECTRUM_SIDE = 1024
NUM_LEADING = 256
ROUGH_ELEMENTS = 1 << 17  # up to here spectra take no time to speak of
SHARE = 1e-4  # by which what leading values lose may be too large


@dataclass(frozen=True)
class SizeTarget:
    """How large a layer may be or how exact it must be: exactly one field is set.

    rank: the largest TT-rank; ranks: one for each; tolerance: relative error of the weight (of the output
    where an input covariance is given); energy: share of the squared norm kept, 1 - tolerance^2; num_parameters:
    a budget for the cores (bias not counted).
    """

    rank: int | None = None
    ranks: tuple[int, ...] | None = None
    tolerance: float | None = None
    energy: float | None = None
    num_parameters: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(vars(self))}; got {given or 'none'}")
        if self.rank is not None and not self.rank >= 1:
            raise ValueError(f"expected rank >= 1, got {self.rank}")
        if self.ranks is not None and not (self.ranks and all(rank >= 1 for rank in self.ranks)):
            raise ValueError(f"expected ranks >= 1, got {self.ranks}")
        if self.tolerance is not None and not 0.0 <= self.tolerance < 1.0:
            raise ValueError(f"expected 0 <= tolerance < 1, got {self.tolerance}")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ValueError(f"expected 0 < energy <= 1, got {self.energy}")
        if self.num_parameters is not None and not self.num_parameters >= 1:
            raise ValueError(f"expected num_parameters >= 1, got {self.num_parameters}")

    @property
    def error(self) -> float | None:
        """The relative error allowed, where the target is a bound on it."""
        if self.energy is not None:
            return max(0.0, 1.0 - self.energy) ** 0.5
        return self.tolerance


class Spectra:
    """Tails of the unfoldings of one matrix [M, N], computed once for each cut that candidates share.

    With `num_values` a tail ends there, or later where that is asked for: of a large matrix these are much less work.
    """

    def __init__(self, weight: Tensor, num_values: int | None = None) -> None:
        self.weight = weight
        self.total = squared_norm(weight)
        self._num_values = num_values
        self._tails: dict[tuple[int, ...], list[float]] = {}

    def tails(self, modes: Modes, *, at_least: int = 0) -> list[list[float]]:
        """For each of the d - 1 TT-ranks, the share of the squared norm lost at r = 0, 1, ... kept values."""
        return [self._cut(modes, k, at_least) for k in range(1, len(modes.sizes))]

    def floor(self, modes: Modes, ranks: Sequence[int]) -> float:
        """A relative error over the entries that are not padding that no decomposition of these ranks is below."""
        return max(
            max(0.0, tail[min(rank, len(tail) - 1)] * (1 - SHARE) - self._beside_padding(modes, k)) ** 0.5
            if len(tail) <= FULL_SPECTRUM_SIDE + 1  # of longer ones a part is a rough estimate
            else 0.0
            for k, (tail, rank) in enumerate(zip(self.tails(modes), ranks, strict=True), 1)
        )

    def _beside_padding(self, modes: Modes, k: int) -> float:
        """The share of the squared norm in those rows and columns of unfolding k that have padding in them."""
        M, N = self.weight.shape
        rows, columns = M % math.prod(modes.output_dims[k:]), N % math.prod(modes.input_dims[k:])
        beside = [
            part
            for size, part in ((rows, self.weight[M - rows :]), (columns, self.weight[:, N - columns :]))
            if size
        ]
        return sum(map(squared_norm, beside)) / self.total if beside else 0.0

    def _cut(self, modes: Modes, k: int, at_least: int) -> list[float]:
        rows, columns = (
            (math.prod(dims[:k]), math.prod(dims[k:])) for dims in (modes.output_dims, modes.input_dims)
        )
        key = (*rows, *columns)
        short = min(rows[0] * columns[0], rows[1] * columns[1])
        wanted = short if self._num_values is None else min(short, max(self._num_values, at_least))
        if len(self._tails.get(key, ())) <= wanted and self.total > 0.0:
            self._tails[key] = self._leading(key, wanted) or _tails(
                self._unfolding(self.weight, key), self.total
            )
        return self._tails.get(key, [0.0, 0.0])

    def _unfolding(self, weight: Tensor, key: tuple[int, ...]) -> Tensor:
        m, _, n, _ = key
        return interleave(weight, key[2:], key[:2]).reshape(m * n, -1)

    def _leading(self, key: tuple[int, ...], wanted: int) -> list[float] | None:
        """The tail up to `wanted` values by products in float32, where that is less work and good enough."""
        if self._num_values is None or self.weight.numel() <= ROUGH_ELEMENTS:
            return None
        matrix, total = self._rough
        values = leading_spectrum(self._unfolding(matrix, key), wanted, total=total, share=SHARE)
        return None if values is None else [1.0, *(1.0 - values.cumsum(0) / total).clamp_min(0.0).tolist()]

    @cached_property
    def _rough(self) -> tuple[Tensor, float]:
        """The matrix in float32, scaled so that squares neither overflow nor vanish, and its squared norm."""
        scaled = (self.weight / (self.total / self.weight.numel()) ** 0.5).float()
        return scaled, squared_norm(scaled)


def _tails(unfolding: Tensor, total: float) -> list[float]:
    short = min(unfolding.shape)
    values = spectrum(unfolding, num_values=None if short <= FULL_SPECTRUM_SIDE else NUM_LEADING)
    lost = (1.0 - values.cumsum(0) / total).clamp_min(0.0)
    tails = [1.0, *lost.tolist()]
    if len(values) < short:
        # Beyond what was computed the rest is taken as flat: the dearest case.
        missing = short - len(values)
        tails += [tails[-1] * (1.0 - step / missing) for step in range(1, missing + 1)]
    tails[-1] = 0.0
    return tails


def allocate(modes: Modes, tails: Sequence[Sequence[float]], target: SizeTarget) -> tuple[int, ...]:
    """The d - 1 TT-ranks for a size target.

    Budget and exactness are met by single steps, each where it removes most of the bound per parameter.
    """
    if target.ranks is not None:
        if len(target.ranks) != len(tails):
            raise ValueError(
                f"expected {len(tails)} ranks for the {len(tails) + 1} cores of {modes}; got {target.ranks}"
            )
        return clip_ranks(target.ranks, modes.input_dims, modes.output_dims)
    if target.rank is not None:
        return clip_ranks([target.rank] * len(tails), modes.input_dims, modes.output_dims)
    ranks = (1,) * len(tails)
    for ranks, count, lost in steps(modes, tails, max_parameters=target.num_parameters):  # noqa: B007
        if target.error is not None and lost <= target.error**2:
            break
    return ranks


def steps(
    modes: Modes, tails: Sequence[Sequence[float]], *, max_parameters: int | None = None
) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """(ranks, parameters, bound on the squared relative error) from rank 1 on, one greedy step after the other."""
    sizes, d = modes.sizes, len(modes.sizes)
    limits = [
        min(most, len(tail) - 1)
        for most, tail in zip(max_ranks(modes.input_dims, modes.output_dims), tails, strict=True)
    ]
    all_ranks = [1] * (d + 1)
    count = num_parameters(modes.input_dims, modes.output_dims, all_ranks[1:-1])
    while True:
        # Successive projections never leave more than the whole matrix.
        yield tuple(all_ranks[1:-1]), count, min(1.0, sum(tails[k][all_ranks[k + 1]] for k in range(d - 1)))
        # Where no step gains anything the matrix is represented exactly: more ranks would be waste.
        best, most = None, 0.0
        for k in range(1, d):
            cost = all_ranks[k - 1] * sizes[k - 1] + sizes[k] * all_ranks[k + 1]
            fits = max_parameters is None or count + cost <= max_parameters
            supported = all_ranks[k] < min(
                limits[k - 1], all_ranks[k - 1] * sizes[k - 1], all_ranks[k + 1] * sizes[k]
            )
            if not (fits and supported):
                continue
            gain = (tails[k - 1][all_ranks[k]] - tails[k - 1][all_ranks[k] + 1]) / cost
            if gain > most:
                best, most = k, gain
        if best is None:
            return
        count += all_ranks[best - 1] * sizes[best - 1] + sizes[best] * all_ranks[best + 1]
        all_ranks[best] += 1
