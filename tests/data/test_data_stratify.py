import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskd.data.stratify import check_cut, cut_size, stratified_cut


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(4, 40), min_size=2, max_size=6),
    share=st.floats(0.02, 0.6),
    seed=st.integers(0, 1000),
)
def test_parts_are_disjoint_complete_exact_and_stratified(sizes, share, seed):
    targets = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    count = max(1, round(share * len(targets)))
    stay, cut = stratified_cut(targets, count, seed=seed)
    assert len(cut) == count
    assert sorted([*stay.tolist(), *cut.tolist()]) == list(range(len(targets)))
    assert stay.tolist() == sorted(stay.tolist())
    assert cut.tolist() == sorted(cut.tolist())
    for label, size in enumerate(sizes):
        taken = int((targets[cut] == label).sum())
        assert abs(taken - size * count / len(targets)) < 1


def test_the_cut_depends_on_the_seed_alone():
    targets = torch.arange(100) % 4
    first = stratified_cut(targets, 20, seed=0)[1]
    assert torch.equal(first, stratified_cut(targets, 20, seed=0)[1])
    assert not torch.equal(first, stratified_cut(targets, 20, seed=1)[1])


def test_a_class_is_not_cut_away():
    targets = torch.tensor([0] * 10 + [1])
    with pytest.raises(ValueError, match="leaves none of class 1, which has 1"):
        stratified_cut(targets, 10, seed=0)


@pytest.mark.parametrize(("fraction", "count", "size"), [(0.25, None, 10), (None, 7, 7), (0.0126, None, 1)])
def test_cut_size(fraction, count, size):
    assert cut_size("validation", fraction, count, 40) == size


@pytest.mark.parametrize(
    ("fraction", "count", "words"),
    [
        (
            0.0,
            None,
            r"validation_fraction: got 0\.0, expected",
        ),
        (1.5, None, r"validation_fraction: got 1\.5, expected"),
        (-0.1, None, "got -0.1"),
        (float("nan"), None, "got nan"),
        (0.001, None, r"validation_fraction: got 0\.001, expected"),
        (None, 40, "validation_count: got 40, expected"),
        (None, 0, "validation_count: got 0, expected"),
        (None, None, "validation_fraction: got null, expected"),
        (0.1, 5, r"validation_fraction: got 0\.1, expected"),
    ],
)
def test_impossible_sizes_are_refused(fraction, count, words):
    with pytest.raises(ValueError, match=words):
        cut_size("validation", fraction, count, 40)


def test_a_cut_from_a_set_that_has_the_split_is_refused():
    with pytest.raises(ValueError, match=r"test_fraction: got 0\.1, expected"):
        check_cut("test", 0.1, None, given=True)
    check_cut("test", None, None, given=True)
