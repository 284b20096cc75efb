import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compresskd.compare.statistics import (
    holm,
    incomplete_beta,
    mcnemar,
    paired_bootstrap,
    student_quantile,
    summarize,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 29, 100, 1000, 100_000])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995, 0.9999])
def test_student_quantile_against_scipy(degrees, probability):
    assert student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12
    )


@settings(deadline=None)  # the machine may be busy
@given(st.floats(0.1, 200), st.floats(0.1, 200), st.floats(0, 1))
def test_incomplete_beta_against_scipy(a, b, x):
    assert incomplete_beta(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-8, abs=1e-12)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_summary_against_scipy(values):
    found = summarize(values)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.low == pytest.approx(np.mean(values) - half, abs=1e-9)
    assert found.high == pytest.approx(np.mean(values) + half, abs=1e-9)


def test_summary_of_one_value_claims_no_spread():
    found = summarize([0.5])
    assert found is not None
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 0.5, None, None, None)
    assert summarize([]) is None


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_against_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_samples_neither_underflows_nor_exceeds_one():
    assert mcnemar(50_000, 50_000) == 1.0
    assert 0 <= mcnemar(10, 100_000) < 1e-300
    assert mcnemar(49_700, 50_300) == pytest.approx(stats.binomtest(49_700, 100_000).pvalue, rel=1e-6)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03], num_hypotheses=5) == pytest.approx([0.05, 0.12, 0.12])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p_values)) + 1e-12
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert all(adjusted[a] <= adjusted[b] for a, b in pairwise(order))


def draws(num_seeds, num_samples, seed=0, shift=0.02):
    generator = np.random.default_rng(seed)
    p = [0.05, 0.9 - shift, 0.05 + shift]
    return generator.choice([-1, 0, 1], p=p, size=(num_seeds, num_samples)).astype(np.int8)


def test_bootstrap_of_one_seed_is_the_ordinary_paired_bootstrap():
    difference = draws(1, 400)
    found = paired_bootstrap(difference)
    generator = np.random.default_rng(1)
    indices = generator.integers(0, 400, size=(10_000, 400))
    low, high = np.quantile(difference[0][indices].mean(axis=1), [0.025, 0.975])
    assert found.difference == pytest.approx(difference.mean())
    assert found.low == pytest.approx(low, abs=0.003)
    assert found.high == pytest.approx(high, abs=0.003)


def test_bootstrap_resamples_seeds_and_samples_like_the_plain_loop():
    difference = draws(4, 300, seed=2)
    generator = np.random.default_rng(3)
    means = [
        difference[np.ix_(generator.integers(0, 4, 4), generator.integers(0, 300, 300))].mean()
        for _ in range(5000)
    ]
    found = paired_bootstrap(difference)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.003)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.003)


def test_bootstrap_of_many_seeds_takes_the_same_road():
    difference = draws(45, 60, seed=4)  # beyond one integer a column
    found = paired_bootstrap(difference, num_resamples=2000)
    assert found.low < found.difference < found.high


def test_bootstrap_is_seeded_and_symmetric_and_calibrated_at_the_ends():
    difference = draws(3, 500, seed=5)
    assert paired_bootstrap(difference) == paired_bootstrap(difference)
    assert paired_bootstrap(difference) != paired_bootstrap(difference, seed=1)
    assert paired_bootstrap(-difference).difference == -paired_bootstrap(difference).difference
    same = paired_bootstrap(np.zeros((3, 50), dtype=np.int8))
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    always = paired_bootstrap(np.ones((2, 50), dtype=np.int8))
    assert (always.low, always.high) == (1, 1)
    assert always.p_value == pytest.approx(2 / 10_001)


def test_bootstrap_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one seed and one sample"):
        paired_bootstrap(np.zeros((0, 5), dtype=np.int8))


def test_an_interval_ends_where_values_do():
    found = summarize([0.99, 1.0, 0.95], low=0.0, high=1.0)
    assert found is not None
    assert (found.high, found.low) == (1.0, summarize([0.99, 1.0, 0.95]).low)
