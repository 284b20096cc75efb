"""The search over modes for one matrix and one size target: rank all cheaply, decompose the best."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from compresskd.tt.decompose.cores import num_parameters
from compresskd.tt.decompose.metric import Metric, Weighed
from compresskd.tt.decompose.modes import Modes
from compresskd.tt.decompose.ranks import SizeTarget, Spectra, allocate, steps
from compresskd.tt.decompose.tt_svd import Decomposition, tt_svd, working
from compresskd.tt.decompose.whitening import tt_svd_whitened

NUM_DECOMPOSED = 3
REFINEMENTS = 4
NEGLIGIBLE = 1e-6
ALIKE = 1.01

Seconds = Callable[[Modes, Sequence[int]], float]


@dataclass(frozen=True)
class Candidate:
    """One choice of modes with the ranks that a size target gives it.

    `error` is relative, of the weight, or in a metric where one was given; until the candidate has been decomposed it
    is the bound that the unfoldings' spectra give.
    """

    modes: Modes
    ranks: tuple[int, ...]
    num_parameters: int
    error: float
    decomposition: Decomposition | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A size that one layer can have: `error` is relative; `absolute_error` is what adds up over layers.

    `squared_error` is the squared Frobenius norm of the error of the weight, or with a metric its cost: of inputs
    alone the mean squared norm of the error of the output (summed over output features).
    """

    num_parameters: int
    ranks: tuple[int, ...]
    error: float
    squared_error: float
    modes: Modes


def search(
    weight: Tensor,
    candidates: Sequence[Modes],
    target: SizeTarget,
    *,
    metric: Metric | None = None,
    keep_larger: bool = False,
    cost: Seconds | None = None,
    as_good_as_svd: bool = False,
) -> list[Candidate]:
    """All candidates for `weight` [M, N], the best first; at least the best has been decomposed.

    Those that take as many parameters as `weight` come into question with `keep_larger` only. Of those that are within
    a hundredth of the best, and no worse than the low-rank SVD, the one of the least `cost` comes first. With
    `as_good_as_svd` those that lose more than the low-rank SVD of the same target come behind it. Work on one that is
    known to stay behind is left out: it may come without a decomposition.

    Which is best: for a bound on the error the fewest parameters; for a budget the least error; for a rank the error
    against that of the low-rank SVD of as many parameters. The first of `candidates` is always decomposed: it is
    the low-rank SVD where that is allowed, so the outcome is never worse than the SVD.
    """
    given = weight if metric is None else Weighed(weight, metric)
    if target.ranks is not None and len(candidates) == 1:  # nothing is left to be searched
        return [_given(candidates[0], given, target, weight.numel(), keep_larger)]
    dense = weight.numel()
    spectra = Spectra(_whitened(weight, metric), target.rank)
    reference = _Reference(candidates[0], spectra, _most_parameters(candidates, target, dense, keep_larger))
    estimates = [_estimate(modes, spectra, target) for modes in candidates]
    smaller = [c for c in estimates if keep_larger or c.num_parameters < dense]
    if not smaller:
        return sorted(estimates, key=lambda c: c.num_parameters)
    ranked = sorted(smaller, key=lambda c: _merit(c, target, reference))
    chosen = ranked[:NUM_DECOMPOSED]
    chosen += [c for c in smaller if c.modes == candidates[0] and c not in chosen]
    # the bound counts padding, by which such modes fall behind: the best of them is measured as well
    padded = [c for c in ranked if math.prod(c.modes.sizes) > dense]
    chosen += [c for c in padded[:1] if c not in chosen]
    done: list[Candidate] = []
    race = _Race(target, reference, candidates[0] if as_good_as_svd else None)
    for c in sorted(chosen, key=lambda c: c.modes != candidates[0]):
        limit = race.limit(c)
        if metric is not None or spectra.floor(c.modes, c.ranks) <= limit:
            done.append(realize(c, given, spectra, target, limit))
            race.enter(done[-1])
    others = [c for c in ranked if all(c.modes != each.modes for each in done)]
    done = [c for c in done if keep_larger or c.num_parameters < dense]
    done.sort(key=lambda c: _merit(c, target, reference))
    if cost is not None and len(done) > 1:
        done = _fastest_of_alike(done, candidates[0], lambda c: _merit(c, target, reference)[:2], cost)
    return sorted(done, key=lambda c: not race.is_good(c)) + others


def _fastest_of_alike(
    done: list[Candidate], svd: Modes, merit: Callable[[Candidate], tuple[bool, float]], cost: Seconds
) -> list[Candidate]:
    missed, least = merit(done[0])
    most = min([ALIKE * least, *[merit(c)[1] for c in done if c.modes == svd and not merit(c)[0]]])
    alike = [c for c in done if merit(c)[0] == missed and merit(c)[1] <= most]
    if len(alike) < 2:
        return done
    first = min(alike, key=lambda c: cost(c.modes, c.ranks))
    return [first, *[c for c in done if c is not first]]


def curve(
    weight: Tensor,
    candidates: Sequence[Modes],
    *,
    metric: Metric | None = None,
    max_points: int = 64,
    interpolative: bool = False,
) -> list[CurvePoint]:
    """The sizes worth having, by rising parameters and falling error bound, below the dense size.

    Points lie on the lower convex hull over all candidates, so that greedy steps from point to point are optimal
    for a sum over layers. `interpolative` layers take the square of their rank less, see `InterpolativeLinear`.
    """
    spectra = Spectra(_whitened(weight, metric))
    most = None if interpolative else weight.numel() - 1
    points = [
        CurvePoint(count, ranks, max(0.0, lost) ** 0.5, max(0.0, lost) * spectra.total, modes)
        for modes in candidates
        for ranks, all_of_them, lost in steps(modes, spectra.tails(modes), max_parameters=most)
        if (count := all_of_them - (ranks[0] ** 2 if interpolative else 0)) < weight.numel()
    ]
    hull = _lower_hull(points)
    if len(hull) <= max_points:
        return hull
    chosen = sorted({round(i * (len(hull) - 1) / (max_points - 1)) for i in range(max_points)})
    return [hull[i] for i in chosen]


def realize(
    candidate: Candidate,
    weight: Tensor | Weighed,
    spectra: Spectra,
    target: SizeTarget,
    limit: float = math.inf,
) -> Candidate:
    """The candidate decomposed; for a bound on the error with as few ranks as the measured error allows.

    Where it is not going to reach an error of `limit` less may be done about it.
    """
    best = _decomposed(candidate.modes, candidate.ranks, weight, limit)
    if target.error is None or target.error == 0.0:
        return best
    # The bound is loose, so aim at a larger one until the measured error just keeps the bound.
    tails, low, high = spectra.tails(candidate.modes), target.error, None
    for _ in range(REFINEMENTS if best.error <= target.error else 0):
        aim = min(0.999, low * min(target.error / max(best.error, 1e-12), 2.0))
        aim = aim if high is None else (low + high) / 2
        ranks = allocate(candidate.modes, tails, SizeTarget(tolerance=aim))
        if ranks == best.ranks:
            break
        trial = _decomposed(candidate.modes, ranks, weight)
        if trial.error <= target.error and trial.num_parameters <= best.num_parameters:
            best, low = trial, aim
        else:
            high = aim
    return best


def _decomposed(
    modes: Modes, ranks: Sequence[int], weight: Tensor | Weighed, limit: float = math.inf
) -> Candidate:
    if isinstance(weight, Weighed):
        result = tt_svd_whitened(weight, modes.input_dims, modes.output_dims, ranks, limit=limit)
    else:
        result = tt_svd(weight, modes.input_dims, modes.output_dims, ranks=ranks)
    return Candidate(modes, result.ranks, result.num_parameters, result.error, result)


def _whitened(weight: Tensor, metric: Metric | None) -> Tensor:
    weight = working(weight)
    return weight if metric is None else metric.whitened(weight)


def _given(
    modes: Modes, weight: Tensor | Weighed, target: SizeTarget, dense: int, keep_larger: bool
) -> Candidate:
    ranks = allocate(modes, [()] * (len(modes.sizes) - 1), target)
    count = num_parameters(modes.input_dims, modes.output_dims, ranks)
    if count < dense or keep_larger:
        return _decomposed(modes, ranks, weight)
    return Candidate(modes, ranks, count, 1.0)


def _estimate(modes: Modes, spectra: Spectra, target: SizeTarget) -> Candidate:
    tails = spectra.tails(modes)
    ranks = allocate(modes, tails, target)
    lost = sum(tail[min(rank, len(tail) - 1)] for tail, rank in zip(tails, ranks, strict=True))
    count = num_parameters(modes.input_dims, modes.output_dims, ranks)
    return Candidate(modes, ranks, count, min(1.0, max(0.0, lost)) ** 0.5)


def _most_parameters(candidates: Sequence[Modes], target: SizeTarget, dense: int, keep_larger: bool) -> int:
    """Of any candidate that comes into question, where a rank is the target: errors have no say in it."""
    if target.rank is None:
        return dense
    counts = []
    for modes in candidates:
        ranks = allocate(modes, [()] * (len(modes.sizes) - 1), target)
        counts.append(num_parameters(modes.input_dims, modes.output_dims, ranks))
    return max((count for count in counts if keep_larger or count < dense), default=0)


class _Race:
    """What a candidate must reach, after those that have been decomposed, the low-rank SVD the first of them."""

    def __init__(self, target: SizeTarget, reference: "_Reference", svd: Modes | None) -> None:
        self._target, self._reference, self._svd = target, reference, svd
        self._most, self._least = math.inf, math.inf

    def enter(self, candidate: Candidate) -> None:
        """Count a candidate that has been decomposed."""
        if candidate.modes == self._svd:
            self._most = candidate.error
        missed, merit, _ = _merit(candidate, self._target, self._reference)
        if not missed and self.is_good(candidate):
            self._least = min(self._least, merit)

    def is_good(self, candidate: Candidate) -> bool:
        """Whether it loses no more than the SVD, where that counts."""
        return candidate.error <= self._most

    def limit(self, candidate: Candidate) -> float:
        """The error above which it is not even like the best, or loses more than the SVD where that counts."""
        if self._target.error is not None:
            return math.inf
        unit = 1.0
        if self._target.num_parameters is None:
            unit = max(self._reference.error(candidate.num_parameters), NEGLIGIBLE)
        return min(ALIKE * self._least * unit, self._most)


class _Reference:
    """Error of the low-rank SVD (the first candidate) of a given number of parameters, between its ranks.

    `most` is the largest number that will be asked for.
    """

    def __init__(self, modes: Modes, spectra: Spectra, most: int) -> None:
        self.unit = sum(modes.sizes)
        last = most // self.unit + 1
        self.tail = spectra.tails(modes, at_least=last)[0] if len(modes.sizes) == 2 else None

    def error(self, count: int) -> float:
        if self.tail is None:
            return 1.0
        rank = min(count / self.unit, len(self.tail) - 1)
        low = int(rank)
        high = min(low + 1, len(self.tail) - 1)
        lost = self.tail[low] + (rank - low) * (self.tail[high] - self.tail[low])
        return max(lost, 1e-16) ** 0.5


def _merit(candidate: Candidate, target: SizeTarget, reference: _Reference) -> tuple[bool, float, float]:
    """A sort key: the least is the best."""
    if target.error is not None:
        return candidate.error > target.error * (1 + 1e-9) + 1e-7, candidate.num_parameters, candidate.error
    if target.num_parameters is not None:
        over = candidate.num_parameters > target.num_parameters
        return over, max(candidate.error, NEGLIGIBLE), candidate.num_parameters
    # Errors at the level of rounding are equal: there the smaller candidate is better.
    relative = max(candidate.error, NEGLIGIBLE) / max(reference.error(candidate.num_parameters), NEGLIGIBLE)
    return False, relative, candidate.num_parameters


def _lower_hull(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    hull: list[CurvePoint] = []
    for point in sorted(points, key=lambda p: (p.num_parameters, p.squared_error)):
        if hull and point.squared_error >= hull[-1].squared_error:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _above(a: CurvePoint, b: CurvePoint, c: CurvePoint) -> bool:
    """Whether b lies on or above the line from a to c."""
    rise = (c.squared_error - a.squared_error) * (b.num_parameters - a.num_parameters)
    return (b.squared_error - a.squared_error) * (c.num_parameters - a.num_parameters) >= rise
