"""The statistics of a comparison: Student intervals, exact McNemar, the paired bootstrap, Holm.

Shape legend: S seeds, N test samples, K distinct columns, B bootstrap resamples, W distinct draws of seeds,
T = 2 S + 1 possible sums of -1, 0, 1 over the drawn seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_MOST_DRAWS = 50_000_000  # of single samples, some seconds


@dataclass(frozen=True, slots=True)
class Summary:
    """`n` values: their mean, sample standard deviation (n - 1) and Student interval of the mean.

    `std`, `low` and `high` are None for a single value: one run says nothing of its spread.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def summarize(values: Sequence[float], *, low: float = -math.inf, high: float = math.inf) -> Summary | None:
    """Summary of finite values; None of none.

    low, high: what a value can be. The interval is cut there: the part beyond holds no mean, so that what is left
    covers as often as the whole.
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, max(low, mean - half), min(high, mean + half))


@lru_cache(maxsize=1024)
def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for 0.5 <= probability < 1, by bisection of the distribution function."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t), t >= 0, from the incomplete beta function (Abramowitz & Stegun 26.7.1)."""
    return 1 - 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b) by Lentz's continued fraction (Numerical Recipes 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for coefficient in (even, odd):
            d = 1 / _away_from_zero(1 + coefficient * d, tiny)
            c = _away_from_zero(1 + coefficient / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided McNemar test (a binomial test of the discordant samples at one half).

    Args:
        first_only: samples that only the first model classifies correctly.
        second_only: samples that only the second one does.

    Returns:
        The p-value; 1.0 when the two never disagree in correctness.
    """
    n, k = first_only + second_only, min(first_only, second_only)
    if n == 0 or first_only == second_only:
        return 1.0
    log_half = n * math.log(0.5)
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, log_terms)))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A paired difference of mean scores: its value, 95% percentile interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    difference_SN: NDArray[Any], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Bootstrap of the mean of `difference_SN`, resampling test samples and seeds independently.

    Owen, "The pigeonhole bootstrap" (2007): rows and columns are drawn with replacement, the same columns for
    every row, so the interval covers both another test set of the kind and other seeds. It errs on the wide
    side for the samples; with a handful of seeds it is narrow for these, as every bootstrap of few is.
    Given the drawn seeds (W distinct draws) only the count of samples per total matters, hence a multinomial
    over at most 2 S + 1 totals in place of N indices.

    Args:
        difference_SN: [S, N] score of the one minus score of the other; of -1, 0, 1 in int8 where these are right and
            wrong, else floating-point numbers, for which samples are drawn one by one.
        num_resamples: B; fewer, but 1,000 at least, where that many drawn samples would take minutes.
        seed: of the generator; the same input gives the same answer.
    """
    num_seeds, num_samples = difference_SN.shape
    if num_seeds == 0 or num_samples == 0:
        raise ValueError(f"expected at least one seed and one sample, got shape {difference_SN.shape}")
    generator = np.random.default_rng(seed)
    if difference_SN.dtype.kind == "f":
        means_B = _drawn_means(difference_SN, generator, num_resamples)
        return _interval(float(difference_SN.mean()), means_B)
    first_K, _, counts_K = _distinct_rows(difference_SN.T.astype(np.int64) + 1, 3)
    weights_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    first_W, row_B, _ = _distinct_rows(weights_BS, num_seeds + 1)
    shares_WT = _shares_of_totals(weights_BS[first_W], difference_SN[:, first_K], counts_K)
    drawn_BT = generator.multinomial(num_samples, shares_WT[row_B])
    means_B = drawn_BT @ np.arange(-num_seeds, num_seeds + 1) / (num_samples * num_seeds)
    return _interval(float(difference_SN.mean()), means_B)


def _interval(difference: float, means_B: NDArray[np.float64]) -> Bootstrap:
    low, high = np.quantile(means_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    one_side = min(int((means_B <= 0).sum()), int((means_B >= 0).sum()))
    p_value = min(1.0, 2 * (one_side + 1) / (len(means_B) + 1))
    return Bootstrap(difference, float(low), float(high), p_value)


def _drawn_means(
    difference_SN: NDArray[Any], generator: np.random.Generator, num_resamples: int
) -> NDArray[np.float64]:
    """[B] means over drawn seeds and drawn samples."""
    num_seeds, num_samples = difference_SN.shape
    count = min(num_resamples, max(1_000, _MOST_DRAWS // num_samples))
    weights_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=count)
    means_B = np.empty(count)
    for index, weights_S in enumerate(weights_BS):
        drawn_N = generator.integers(num_samples, size=num_samples)
        means_B[index] = (weights_S @ difference_SN[:, drawn_N]).sum() / (num_samples * num_seeds)
    return means_B


def _distinct_rows(
    rows: NDArray[np.int64], base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of rows of digits below `base`: position of each distinct one, which one each row is, and their counts."""
    axis, codes = 0, rows
    if base ** rows.shape[1] < 2**63:  # as one integer a row sorts twenty times faster
        axis, codes = None, rows @ base ** np.arange(rows.shape[1])
    _, first, which, times = np.unique(
        codes, axis=axis, return_index=True, return_inverse=True, return_counts=True
    )
    return first, which.reshape(-1), times


def _shares_of_totals(
    weights_WS: NDArray[np.int64], columns_SK: NDArray[np.int8], counts_K: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[W, T] share of the samples whose sum over the drawn seeds is t - S, for each distinct draw of seeds."""
    num_seeds = weights_WS.shape[1]
    num_totals = 2 * num_seeds + 1
    weights, columns = (
        weights_WS.astype(np.float32),
        columns_SK.astype(np.float32),
    )  # exact; integers lack BLAS
    shares_WT = np.empty((len(weights), num_totals))
    step = max(1, 2_000_000 // len(counts_K))  # bounds the memory where nearly every column is distinct
    for start in range(0, len(weights), step):
        totals = (weights[start : start + step] @ columns).astype(np.int64) + num_seeds
        rows = len(totals)
        totals += np.arange(rows)[:, None] * num_totals
        counts = np.broadcast_to(counts_K, totals.shape).ravel()
        found = np.bincount(totals.ravel(), counts, minlength=rows * num_totals)
        shares_WT[start : start + rows] = found.reshape(rows, num_totals)
    return shares_WT / counts_K.sum()


def holm(p_values: Sequence[float], num_hypotheses: int | None = None) -> list[float]:
    """P-values adjusted for several comparisons by Holm's step-down method (1979).

    Args:
        p_values: of the tests that were made.
        num_hypotheses: how many there were to make, if more; those not made count as p = 1.
    """
    total = max(len(p_values), num_hypotheses or 0)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (total - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted
