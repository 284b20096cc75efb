import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import says

from compresskd.data import Normalize, TensorSplit
from compresskd.data.augmentation import Compose, HorizontalFlip, RandomCrop

NORMALIZE = Normalize((0.1, 0.5, 0.3), (0.2, 0.5, 0.25), 255.0)
CROP_FLIP = Compose({"crop": RandomCrop(padding=2), "flip": HorizontalFlip()})


def make_split(count=11, *, name="train", augmentation=None, bank=None, **options):
    rng = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count + 5, 3, 6, 5), dtype=torch.uint8, generator=rng)
    rows = torch.randperm(count + 5, generator=rng)[:count]
    return TensorSplit(
        name=name,
        pixels=pixels,
        rows=rows,
        targets=torch.arange(count) % 3,
        normalize=NORMALIZE,
        fingerprint="",
        augmentation=augmentation,
        augmentation_bank=bank,
        **options,
    )


def by_sample(batches):
    """Inputs by position in the split."""
    return {int(i): x for batch in batches for i, x in zip(batch.index, batch.inputs, strict=True)}


def assert_equal_batches(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for field in ("inputs", "targets", "index"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=0, atol=0)
        assert one.view == other.view


def test_in_order_batches_are_the_normalised_pixels():
    split = make_split()
    batches = list(split.batches(4))
    assert [len(batch.targets) for batch in batches] == [4, 4, 3]
    mean, std = np.array(NORMALIZE.mean), np.array(NORMALIZE.std)
    for step, batch in enumerate(batches):
        index = np.arange(11)[4 * step : 4 * step + 4]
        pixels = split.pixels[split.rows[index]].numpy().astype(np.float64)
        expected = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(batch.inputs.numpy(), expected, rtol=0, atol=2e-6)
        assert batch.inputs.dtype == torch.float32
        assert batch.index.tolist() == index.tolist()
        assert batch.targets.tolist() == (index % 3).tolist()
        assert batch.view == 0


def test_batches_do_not_change_stored_float_samples():
    vectors = torch.randn(6, 4)
    split = TensorSplit(
        "test", vectors.clone(), torch.arange(6), torch.zeros(6).long(), Normalize((1.0,), (2.0,)), ""
    )
    (batch,) = split.batches(6)
    torch.testing.assert_close(batch.inputs, (vectors - 1) / 2)
    assert torch.equal(split.pixels, vectors)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 16),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    bank=st.sampled_from([None, 1, 3]),
    start=st.floats(0, 1),
    streamed=st.booleans(),
)
def test_start_skips_and_yields_what_would_have_come(count, batch_size, epoch, seed, bank, start, streamed):
    split = make_split(count, augmentation=CROP_FLIP, bank=bank, streamed=streamed)
    whole = list(split.batches(batch_size, epoch=epoch, seed=seed))
    assert len(whole) == split.num_batches(batch_size)
    skip = round(start * len(whole))
    assert_equal_batches(whole[skip:], split.batches(batch_size, epoch=epoch, seed=seed, start=skip))
    in_order = list(split.batches(batch_size))
    assert len(in_order) == split.num_batches(batch_size, training=False)
    skip = round(start * len(in_order))
    assert_equal_batches(in_order[skip:], split.batches(batch_size, start=skip))


def test_every_epoch_and_seed_has_its_own_order_of_all_samples():
    split = make_split(40)
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        index = torch.cat([batch.index for batch in split.batches(7, epoch=epoch, seed=seed)])
        assert sorted(index.tolist()) == list(range(40))
        orders[seed, epoch] = tuple(index.tolist())
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize(
    ("count", "batch_size", "training", "in_order"),
    [(9, 4, 2, 3), (10, 4, 3, 3), (8, 4, 2, 2), (1, 4, 1, 1), (3, 1, 3, 3)],
)
def test_training_leaves_out_a_last_batch_of_one_sample(count, batch_size, training, in_order):
    split = make_split(count)
    sizes = [len(batch.targets) for batch in split.batches(batch_size, epoch=0)]
    assert len(sizes) == split.num_batches(batch_size) == training
    assert 1 not in sizes or batch_size == 1 or count == 1
    assert sum(len(batch.targets) for batch in split.batches(batch_size)) == count
    assert split.num_batches(batch_size, training=False) == in_order
    assert make_split(count, name="validation").num_batches(batch_size) == in_order


def test_a_bank_shows_the_same_pixels_whatever_the_batch():
    split = make_split(20, augmentation=CROP_FLIP, bank=2)
    assert split.num_views == 2
    first, second = by_sample(split.batches(6, epoch=0)), by_sample(split.batches(6, epoch=1))
    again = by_sample(split.batches(7, epoch=4))
    assert {batch.view for batch in split.batches(6, epoch=4)} == {0}
    assert {batch.view for batch in split.batches(6, epoch=1)} == {1}
    assert set(again) == set(range(20))
    for sample, inputs in first.items():
        assert torch.equal(inputs, again[sample])
    assert sum(torch.equal(inputs, second[sample]) for sample, inputs in first.items()) < 5
    assert torch.equal(by_sample(split.batches(6, epoch=0, seed=1))[3], first[3]) is False


def test_one_view_of_a_bank_in_order():
    split = make_split(13, augmentation=CROP_FLIP, bank=3)
    shown = by_sample(split.batches(6, epoch=5, seed=1))
    batches = list(split.batches(4, view=2, seed=1))
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(13))
    assert {batch.view for batch in batches} == {2}
    in_order = by_sample(batches)
    assert all(torch.equal(inputs, in_order[sample]) for sample, inputs in shown.items())
    plain = make_split(13)
    assert_equal_batches(plain.batches(4, view=0), plain.batches(4))
    one = make_split(13, augmentation=CROP_FLIP, bank=1)
    assert {batch.view for batch in one.batches(4)} == {-1}


def test_without_a_bank_every_epoch_is_fresh_and_no_view_is_to_be_kept():
    split = make_split(20, augmentation=CROP_FLIP)
    assert split.num_views is None
    epochs = [by_sample(split.batches(size, epoch=epoch)) for epoch, size in [(0, 6), (0, 9), (1, 6)]]
    assert all(torch.equal(inputs, epochs[1][sample]) for sample, inputs in epochs[0].items())
    assert sum(torch.equal(inputs, epochs[2][sample]) for sample, inputs in epochs[0].items()) < 5
    assert {batch.view for batch in split.batches(6, epoch=3)} == {-1}


def test_plain_pixels_of_an_augmented_split_are_no_view_of_its_bank():
    plain, banked = make_split(9), make_split(9, augmentation=CROP_FLIP, bank=3)
    assert {batch.view for batch in banked.batches(4)} == {-1}
    assert_equal_batches(
        [dataclasses.replace(batch, view=0) for batch in banked.batches(4)], plain.batches(4)
    )
    assert {batch.view for batch in plain.batches(4, epoch=7)} == {0}
    assert plain.num_views == 1


@pytest.mark.parametrize("epoch", [None, 2])
def test_streamed_splits_yield_the_same_batches(epoch):
    resident = make_split(30, augmentation=CROP_FLIP)
    streamed = dataclasses.replace(resident, streamed=True)
    assert_equal_batches(resident.batches(8, epoch=epoch), streamed.batches(8, epoch=epoch))
    assert_equal_batches(resident.to("cpu:0").batches(8, epoch=epoch), resident.batches(8, epoch=epoch))
    assert_equal_batches(streamed.to("cpu:0").batches(8, epoch=epoch), resident.batches(8, epoch=epoch))


def test_a_streamed_split_may_be_left_in_the_middle_of_a_pass():
    split = make_split(30, streamed=True)
    first = next(iter(split.batches(4, epoch=0)))
    assert torch.equal(first.inputs, next(split.batches(4, epoch=0)).inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, says("batch_size", "1", "0")),
        ({"batch_size": 4, "start": 4}, "expected 0 to 3 batches to skip, got 4"),
        ({"batch_size": 4, "start": -1}, "expected 0 to 3"),
        ({"batch_size": 4, "epoch": -1}, says("epoch", "0", "-1")),
    ],
)
def test_impossible_arguments_are_refused_before_the_first_batch(options, words):
    with pytest.raises(ValueError, match=words):
        make_split(11).batches(**options)


def test_views_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="one of the 1 fixed views of train, got 1"):
        make_split(9).batches(4, view=1)
    with pytest.raises(ValueError, match="one of the 3 fixed views of train, got 3"):
        make_split(9, augmentation=CROP_FLIP, bank=3).batches(4, view=3)
    with pytest.raises(ValueError, match="one of the 0 fixed views of train, got 0"):
        make_split(9, augmentation=CROP_FLIP).batches(4, view=0)
    with pytest.raises(ValueError, match=says("view", "0", "none")):
        make_split(9).batches(4, epoch=0, view=0)
