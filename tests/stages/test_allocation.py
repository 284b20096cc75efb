"""The greedy allocation against exhaustive search, and its edges."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskd.compression.allocation import BudgetTooSmallError, Size, allocate


@st.composite
def convex_curves(draw):
    """Curves whose steps all cost one parameter, at falling gains: there greedy is optimal."""
    curves = {}
    for name in "abc":
        gains = sorted(draw(st.lists(st.floats(0.01, 10), min_size=1, max_size=4)), reverse=True)
        errors = [sum(gains[i:]) for i in range(len(gains) + 1)]
        curves[name] = [Size(i + 1, error) for i, error in enumerate(errors)]
    return curves


@st.composite
def any_curves(draw):
    sizes = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 10)), min_size=1, max_size=5)
    return {name: [Size(cost, error) for cost, error in draw(sizes)] for name in "abcd"}


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(any_curves(), st.integers(4, 120))
def test_allocation_equals_exhaustive_search_on_any_curves(curves, budget):
    fitting = [
        sum(s.error for s in combination)
        for combination in itertools.product(*curves.values())
        if sum(s.cost for s in combination) <= budget
    ]
    if not fitting:
        with pytest.raises(BudgetTooSmallError):
            allocate(curves, budget)
        return
    chosen = allocate(curves, budget)
    assert list(chosen) == list(curves)
    assert sum(s.cost for s in chosen.values()) <= budget
    assert sum(s.error for s in chosen.values()) == pytest.approx(min(fitting), abs=1e-9)


def test_a_dense_layer_past_break_even_takes_what_greedy_steps_would_leave():
    """Two cheap steps leave too little for the jump to dense, which is better than both."""
    low_rank = [Size(1, 10.0), Size(3, 6.0), Size(5, 4.0)]
    curves = {"a": [*low_rank, Size(6, 0.0, dense=True)], "b": low_rank}
    chosen = allocate(curves, 7)
    assert chosen["a"].dense
    assert chosen["b"].cost == 1


@settings(max_examples=60, deadline=None)
@given(convex_curves(), st.integers(3, 12))
def test_greedy_equals_exhaustive_search_on_unit_steps(curves, budget):
    chosen = allocate(curves, budget)
    assert sum(s.cost for s in chosen.values()) <= budget
    best = min(
        sum(s.error for s in combination)
        for combination in itertools.product(*curves.values())
        if sum(s.cost for s in combination) <= budget
    )
    assert sum(s.error for s in chosen.values()) == pytest.approx(best)


def test_points_above_the_hull_are_chosen_only_where_no_better_one_fits():
    curves = {"a": [Size(1, 10.0), Size(2, 9.9), Size(3, 1.0), Size(9, 0.0, dense=True)]}
    assert allocate(curves, 3)["a"] == Size(3, 1.0)
    assert allocate(curves, 2)["a"] == Size(2, 9.9)
    assert allocate(curves, 100)["a"].dense


def test_what_is_left_goes_to_steps_that_fit():
    curves = {"big": [Size(1, 10.0), Size(50, 0.0)], "small": [Size(1, 1.0), Size(3, 0.9)]}
    chosen = allocate(curves, 10)
    assert chosen["big"].cost == 1
    assert chosen["small"].cost == 3


def test_a_budget_below_the_least_says_what_the_least_is():
    with pytest.raises(BudgetTooSmallError, match="1 for the layers; their least is 2"):
        allocate({"a": [Size(1, 1.0)], "b": [Size(1, 1.0)]}, 1)


def test_steps_of_equal_rate_up_to_rounding_stay_apart():
    gains = [1.0, 1.0, 1.0, 0.01]
    curves = {"a": [Size(i + 1, sum(gains[i:])) for i in range(5)], "b": [Size(1, 5.0), Size(4, 0.5)]}
    assert 2.01 - 1.01 < 1.01 - 0.01  # of equal gains, the second is rounded below the third
    assert {name: size.cost for name, size in allocate(curves, 6).items()} == {"a": 2, "b": 4}
    assert {name: size.cost for name, size in allocate(curves, 7).items()} == {"a": 3, "b": 4}
