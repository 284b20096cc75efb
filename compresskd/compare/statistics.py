"""The statistics of a comparison: Student intervals, exact McNemar, the paired bootstrap, Holm.

Shape legend: S seeds, N test samples, K distinct columns, B bootstrap resamples, W distinct draws of seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000


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


def summarize(values: Sequence[float]) -> Summary | None:
    """Summary of finite values; None of none."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


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
    """A paired difference of accuracies: its value, 95% percentile interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    difference_SN: NDArray[np.int8], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Bootstrap of the mean of `difference_SN`, resampling test samples and seeds independently.

    Owen, "The pigeonhole bootstrap" (2007): rows and columns are drawn with replacement, the same columns for
    every row, so the interval covers both another test set of the kind and other seeds. It errs on the wide
    side for the samples; with a handful of seeds it is narrow for these, as every bootstrap of few is.
    Given the drawn seeds (W distinct draws) only the count of samples per total matters, hence a multinomial
    over at most 2 S + 1 totals in place of N indices.

    Args:
        difference_SN: [S, N] of -1, 0, 1: correctness of the one minus correctness of the other.
        num_resamples: B.
        seed: of the generator; the same input gives the same answer.
    """
    num_seeds, num_samples = difference_SN.shape
    if num_seeds == 0 or num_samples == 0:
        raise ValueError(f"expected at least one seed and one sample, got shape {difference_SN.shape}")
    generator = np.random.default_rng(seed)
    columns_KS, counts_K = np.unique(difference_SN.T, axis=0, return_counts=True)
    drawn_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    weights_WS, times_W = np.unique(drawn_BS, axis=0, return_counts=True)
    totals_WK = weights_WS @ columns_KS.T.astype(np.int64)  # in -S..S: each sample's sum over the drawn seeds
    values = np.arange(-num_seeds, num_seeds + 1)
    sums = []
    for totals_K, times in zip(totals_WK, times_W, strict=True):
        shares = np.bincount(totals_K + num_seeds, counts_K, minlength=len(values)) / num_samples
        sums.append(generator.multinomial(num_samples, shares, size=times) @ values)
    means_B = np.concatenate(sums) / (num_samples * num_seeds)
    low, high = np.quantile(means_B, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    one_side = min(int((means_B <= 0).sum()), int((means_B >= 0).sum()))
    p_value = min(1.0, 2 * (one_side + 1) / (num_resamples + 1))
    return Bootstrap(float(difference_SN.mean()), float(low), float(high), p_value)


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
