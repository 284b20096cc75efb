"""The space of a search as users write it: what is read, and what is refused."""

import pytest
from refusals import says

from compresskd.options import OptionError
from compresskd.search.space import Choice, Range, lines, listed, parse


def test_ranges_are_read_and_the_rest_is_left():
    words = ["rank=int(4,64)", "optimizer.lr=log(1e-4,1e-2)", "bits=choice(2,null)", "epochs=3", "a=b(1)"]
    space, rest = parse(words)
    assert space == [
        Range("rank", 4, 64, whole=True),
        Range("optimizer.lr", 1e-4, 1e-2, whole=False, log=True),
        Choice("bits", ("2", "null")),
    ]
    assert rest == ["epochs=3", "a=b(1)"]


def test_steps_end_at_the_last_one_below_the_end():
    (dimension,), _ = parse(["rank=int(4,15,4)"])
    assert dimension.listed() == ["4", "8", "12"]
    assert dimension.read("8") == 8
    assert dimension.read("9") is None


def test_values_with_commas_of_their_own_are_one_value():
    (dimension,), _ = parse(["student.hidden=choice([8,8],[4],'a,b')"])
    assert dimension.values == ("[8,8]", "[4]", "'a,b'")


def test_numbers_are_written_with_four_digits_within_the_range():
    dimension = Range("kd.alpha", 0.33333, 0.9, whole=False)
    assert dimension.text(0.456789) == "0.4568"
    assert dimension.text(0.33333) == "0.33333"
    assert dimension.read("0.1") is None
    assert dimension.read("x") is None


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rank=int(8,8)", "below"),
        ("rank=int(9,8)", "below"),
        ("rank=int(3)", "LOW"),
        ("rank=int(a,b)", "LOW"),
        ("rank=int(1.5,3)", "whole"),
        ("rank=int(1,inf)", "LOW"),
        ("rank=int(1,9,0)", "step"),
        ("rank=int(1,9,20)", "step"),
        ("rank=log(0,1)", "logarithm"),
        ("rank=int(0,9,log)", "logarithm"),
        ("rank=log(1,2,3)", "LOW"),
        ("rank=choice(4)", "two"),
        ("rank=choice(4,4)", "two"),
        ("rank=choice(4,)", "two"),
    ],
)
def test_what_is_no_range_is_refused(word, said):
    with pytest.raises(OptionError, match=says("rank", said)):
        parse([word])


def test_a_key_has_one_range_and_no_value_beside_it():
    for words in (["rank=int(1,4)", "rank=int(2,4)"], ["rank=int(1,4)", "rank=3"]):
        with pytest.raises(OptionError, match=says("rank")):
            parse(words)


def test_points_of_a_small_space_are_listed():
    space, _ = parse(["rank=int(1,3)", "bits=choice(2,4)"])
    points = list(listed(space))
    assert len(points) == 6
    assert lines(points[0]) == ["rank=1", "bits=2"]
    assert listed(parse(["kd.alpha=float(0,1)"])[0]) is None
