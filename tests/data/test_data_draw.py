import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresskd.data import Source, assemble
from compresskd.data.augmentation import HorizontalFlip
from compresskd.data.draw import draw, drawn_order


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
)
def test_every_beginning_holds_each_class_in_its_share(sizes, seed, share):
    targets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = drawn_order(targets, seed=seed)
    assert sorted(order.tolist()) == list(range(len(targets)))
    # the rows with a place below t: of each class t times its size, rounded up or down
    count = round(share * len(targets))
    found = torch.bincount(targets[order[:count]], minlength=len(sizes))
    expected = count * torch.tensor(sizes) / len(targets)
    # `count` itself stands for a t that the sum of the roundings moves a little
    slack = 1 + torch.tensor(sizes) * len(sizes) / len(targets)
    assert ((found - expected).abs() <= slack + 1e-9).all()


def test_a_draw_is_a_function_of_its_seed_alone():
    targets = torch.arange(5).repeat_interleave(20)
    torch.manual_seed(1)
    first = drawn_order(targets, seed=3)
    torch.manual_seed(2)
    assert torch.equal(drawn_order(targets, seed=3), first)
    assert not torch.equal(drawn_order(targets, seed=4), first)


@pytest.mark.parametrize(
    "targets",
    [
        torch.rand(400, generator=torch.Generator().manual_seed(0)),  # regression
        torch.arange(400),  # more classes than samples
        torch.zeros(400, 7, dtype=torch.long),  # a target is a sequence
        torch.zeros(400, dtype=torch.long),
    ],
)
def test_without_classes_to_balance_every_row_is_drawn_as_often(targets):
    counts = torch.zeros(400)
    for seed in range(300):
        counts[drawn_order(targets, seed=seed)[:40]] += 1
    assert abs(float(counts.mean()) - 30) < 1e-6
    # binomial(300, 0.1) has a standard deviation of 5.2
    assert 4 < float(counts.std()) < 6.5
    halves = counts[:200].mean(), counts[200:].mean()
    assert abs(halves[0] - halves[1]) < 2


def test_rare_classes_are_drawn_as_often_as_their_share():
    targets = torch.tensor([0] * 990 + [1] * 10)
    found = [int(targets[drawn_order(targets, seed=seed)[:50]].sum()) for seed in range(400)]
    assert set(found) == {0, 1}
    assert sum(found) / 400 == pytest.approx(0.5, abs=0.1)


def sorted_by_class(count=90, classes=3, **options):
    targets = torch.arange(classes).repeat_interleave(count // classes)
    pixels = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    names = [str(label) for label in range(classes)]
    test = Source(pixels + 1000, targets)
    return assemble(
        "sorted", Source(pixels, targets), class_names=names, mean=[0.0], std=[1.0], pixel_max=1, test=test,
        validation_fraction=0.1, **options,
    )  # fmt: skip


def test_a_drawn_split_gives_its_samples_as_they_are():
    data = sorted_by_class(augmentation=HorizontalFlip())
    drawn = draw(data.train, 12, seed=0)
    assert torch.bincount(drawn.targets).tolist() == [4, 4, 4]
    (batch,) = drawn.batches(100)
    assert torch.equal(batch.targets, drawn.targets)
    # pixels tell the row, and so the class, that they belong to
    assert torch.equal(batch.inputs[:, 0, 0, 0].long() // 30, batch.targets)
    assert drawn.num_views == 1
    assert drawn.fingerprint != data.train.fingerprint


def test_a_draw_of_more_than_there_is_has_every_sample_once_and_mixed():
    data = sorted_by_class()
    drawn = draw(data.validation, 1000, seed=0)
    assert sorted(drawn.rows.tolist()) == data.validation.rows.tolist()
    assert drawn.targets[:3].unique().numel() == 3


def test_a_draw_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a draw of train: got 0 samples, expected >= 1"):
        draw(sorted_by_class().train, 0, seed=0)
