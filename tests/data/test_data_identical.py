"""Samples in two splits are counted; a split that lies in train is refused."""

import pytest
import torch

from compresskd.data import Source, assemble
from compresskd.data.identical import sample_hashes


def samples(count=40, seed=0, shape=(1, 4, 4)):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=rng)
    return Source(pixels, torch.arange(count) % 4)


def build(train=None, **options):
    defaults = {
        "class_names": "abcd",
        "mean": [0.5],
        "std": [0.2],
        "pixel_max": 255,
        "validation_fraction": 0.25,
    }
    return assemble("letters", train or samples(), **{"test": samples(12, 1), **defaults, **options})


def joined(one, other):
    return Source(torch.cat([one.pixels, other.pixels]), torch.cat([one.targets, other.targets]))


def test_separate_splits_say_nothing():
    assert build().notices == ()


def test_shared_samples_are_counted_by_split():
    train, test = samples(), samples(12, 1)
    shared = Source(train.pixels[:5], train.targets[:5])
    data = build(
        train, test=joined(shared, test), validation=joined(samples(8, 2), test), validation_fraction=None
    )
    found = {(notice.split, notice.text) for notice in data.notices}
    assert found == {
        ("test", "5 of 17 test samples (29%) are in the train split as well"),
        ("validation", "12 of 20 validation samples (60%) are in the test split as well"),
    }
    assert data.notices[0].examples == tuple(f"sample {row}" for row in range(5))


def test_copies_within_train_reach_the_validation_that_is_cut_from_it():
    data = build(joined(samples(), samples()))
    (notice,) = data.notices
    rows = data.validation.rows % 40
    expected = sum(row in (data.train.rows % 40).tolist() for row in rows.tolist())
    assert (notice.kind, notice.split, notice.count) == ("identical", "validation", expected)


def test_other_labels_of_the_same_sample_are_told():
    train = samples()
    wrong = Source(train.pixels[:6], (train.targets[:6] + torch.tensor([0, 1, 0, 0, 2, 0])) % 4)
    data = build(
        train, test=joined(wrong, samples(12, 1)), validation=samples(8, 2), validation_fraction=None
    )
    assert data.notices[0].text.endswith("are in the train split as well, 2 of them with another label")


@pytest.mark.parametrize("shape", [(1, 4, 4), (6,)])
def test_a_test_split_that_is_in_train_is_refused_unless_allowed(shape):
    train = samples(shape=shape)
    test = Source(train.pixels[8:20], train.targets[8:20])
    options = {"validation": samples(8, 2, shape), "validation_fraction": None}
    with pytest.raises(ValueError, match="all 12 test samples are in the train split as well, so that "):
        build(train, test=test, **options)
    (notice,) = build(train, test=test, allow_overlap=True, **options).notices
    assert notice.count == 12
    with pytest.raises(ValueError, match="all 8 validation samples are in the train split as well, so "):
        build(
            train,
            test=samples(12, 1, shape),
            validation=Source(train.pixels[:8], train.targets[:8]),
            validation_fraction=None,
        )


def test_train_samples_that_are_all_one_are_refused():
    black = Source(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(40) % 4)
    with pytest.raises(ValueError, match="all 30 train samples are the same: there is nothing to be le"):
        build(black)


def test_hashes_follow_contents_and_layout_does_not_matter():
    pixels = torch.rand(6, 3, 4, 4)
    hashes = sample_hashes(pixels)
    assert hashes.dtype == torch.int64
    assert len(hashes.unique()) == 6
    assert torch.equal(hashes, sample_hashes(pixels.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(hashes, sample_hashes(pixels.numpy()))
    assert sample_hashes(pixels[:0]).shape == (0,)
