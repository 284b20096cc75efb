"""The rank schedules against their formulas."""

import pytest

from compresskd.compression import rank_schedule


def test_geometric_falls_by_the_ratio():
    assert [s["rank"] for s in rank_schedule.geometric(8, num_stages=3)] == [32, 16, 8]
    assert [s["rank"] for s in rank_schedule.geometric(5, num_stages=2, ratio=1.5)] == [8, 5]


def test_alpha_is_linear_between_first_and_last():
    steps = rank_schedule.geometric(4, num_stages=3, alpha=[0.9, 0.1])
    assert [s["alpha"] for s in steps] == pytest.approx([0.9, 0.5, 0.1])


def test_linear_falls_by_equal_steps():
    assert [s["rank"] for s in rank_schedule.linear(8, 32, num_stages=4)] == [32, 24, 16, 8]


def test_until_drop_goes_down_to_the_least_rank():
    steps = rank_schedule.until_drop(20, 1.5)
    assert [s["rank"] for s in steps] == [20, 10, 5, 2, 1]
    assert {s["max_drop"] for s in steps} == {1.5}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rank_schedule.geometric(0), "rank: got 0, expected >= 1"),
        (lambda: rank_schedule.geometric(4, num_stages=0), "num_stages: got 0, expected >= 1"),
        (lambda: rank_schedule.geometric(4, ratio=1.0), r"ratio: got 1\.0, expected > 1"),
        (lambda: rank_schedule.geometric(4, alpha=[0.5]), r"alpha: got \[0\.5\], expected \[first, last\]"),
        (lambda: rank_schedule.linear(8, 8), "first_rank: got 8, expected"),
        (lambda: rank_schedule.until_drop(4, -1), "max_drop: got -1, expected >= 0"),
        (
            lambda: rank_schedule.until_drop(4, 1, least_rank=8),
            "first_rank: got 4, expected >= 8, the least rank",
        ),
    ],
)
def test_impossible_schedules_say_what_to_write(call, words):
    with pytest.raises(ValueError, match=words):
        call()
