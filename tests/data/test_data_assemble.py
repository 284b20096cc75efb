from dataclasses import dataclass

import pytest
import torch
from refusals import says

from compresskd.data import Source, assemble
from compresskd.data.augmentation import ColorJitter, HorizontalFlip, RandomCrop
from compresskd.data.digits import digits


def source(count=40, shape=(1, 4, 4), classes=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=rng)
    return Source(pixels, torch.arange(count) % classes)


def build(train=None, **options):
    defaults = {
        "class_names": "abcd",
        "mean": [0.5],
        "std": [0.2],
        "pixel_max": 255,
        "test": source(12, seed=1),
        "validation_fraction": 0.25,
    }
    return assemble("letters", train or source(), **{**defaults, **options})


def test_validation_is_cut_from_train_and_test_is_separate():
    train = source()
    data = build(train)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 12)
    rows = [*data.train.rows.tolist(), *data.validation.rows.tolist()]
    assert sorted(rows) == list(range(40))
    assert torch.bincount(data.validation.targets).tolist() == [3, 3, 2, 2]
    assert torch.equal(data.train.targets, train.targets[data.train.rows])
    assert data.num_classes == 4
    assert data.input_shape == (1, 4, 4)
    assert data.class_names == ("a", "b", "c", "d")


def test_without_a_test_split_one_is_cut_that_no_seed_changes():
    cuts = [build(test=None, test_fraction=0.2, split_seed=seed) for seed in (0, 1)]
    assert [len(split) for split in (cuts[0].train, cuts[0].validation, cuts[0].test)] == [24, 8, 8]
    assert cuts[0].test.rows.tolist() == cuts[1].test.rows.tolist()
    assert cuts[0].validation.rows.tolist() != cuts[1].validation.rows.tolist()
    everything = torch.cat([split.rows for split in (cuts[0].train, cuts[0].validation, cuts[0].test)])
    assert sorted(everything.tolist()) == list(range(40))


def test_a_given_validation_split_is_used():
    data = build(validation=source(8, seed=2), validation_fraction=None)
    assert (len(data.train), len(data.validation)) == (40, 8)


def test_fingerprints_tell_what_differs():
    base = build()
    assert build().fingerprint == base.fingerprint
    assert build(split_seed=1).test.fingerprint == base.test.fingerprint
    assert build(split_seed=1).train.fingerprint != base.train.fingerprint
    other_pixels = source()
    other_pixels.pixels[0, 0, 0, 0] ^= 1
    other_targets = Source(source().pixels, source().targets.roll(1))
    variants = [
        build(split_seed=1),
        build(mean=[0.4]),
        build(augmentation=RandomCrop(padding=2)),
        build(augmentation=RandomCrop(padding=1)),
        build(augmentation=RandomCrop(padding=1), augmentation_bank=2),
        build(other_pixels),
        build(other_targets),
    ]
    assert len({base.fingerprint, *(data.fingerprint for data in variants)}) == 8
    assert variants[1].train.fingerprint == base.train.fingerprint
    assert len(base.fingerprint) == len(base.train.fingerprint) == 16


def test_moving_keeps_everything():
    data = build(augmentation=HorizontalFlip(), augmentation_bank=2)
    moved = data.to("cpu:0")
    assert moved.fingerprint == data.fingerprint
    assert moved.train.num_views == 2
    assert torch.equal(
        next(moved.train.batches(8, epoch=1)).inputs, next(data.train.batches(8, epoch=1)).inputs
    )


class Opaque:
    num_draws = 0

    def __call__(self, images, draws, pixel_max):
        return images


@dataclass(frozen=True)
class Shrinking:
    num_draws = 0

    def __call__(self, images, draws, pixel_max):
        return images[..., 1:]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_classes": 5},
            "num_classes: got 5, expected",
        ),
        ({"input_shape": [1, 5, 4]}, r"input_shape: got \[1, 5, 4\], expected"),
        (
            {"mean": [0.1, 0.2], "std": [1.0, 1.0]},
            r"mean: got \[0\.1, 0\.2\], expected",
        ),
        ({"augmentation_bank": 2}, "augmentation_bank: got 2, expected"),
        ({"augmentation_bank": 0, "augmentation": HorizontalFlip()}, "augmentation_bank: got 0, expected"),
        ({"augmentation": ColorJitter()}, "expected 3 channels to change saturation or hue, got 1"),
        (
            {"augmentation": Opaque()},
            "augmentation: got",
        ),
        (
            {"augmentation": Shrinking()},
            r"augmentation: got 'Shrinking\(\)', expected",
        ),
        ({"validation_fraction": 1.0}, "data.validation_fraction"),
        ({"validation": source(8)}, "its own validation split, so nothing is cut"),
        (
            {"test": source(12, shape=(1, 5, 4))},
            r"test split have shape \[1, 5, 4\], those of train \[1, 4, 4\]",
        ),
        (
            {"test": Source(source(12).pixels, torch.full((12,), -1))},
            "labels 0 to 3 in the test split, got -1 at",
        ),
        ({"class_names": "abcde"}, r"samples of every class in the train split, got none of \['e'\]"),
        ({"class_names": "abc"}, "expected labels 0 to 2 in the train split, got 3"),
        ({"class_names": "a"}, r"num_classes: got 1, expected >= 2, not only \['a'\]"),
        (
            {"test": None},
            says("test_fraction", "null"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_vectors_cannot_be_augmented():
    train = Source(torch.randn(40, 6), torch.arange(40) % 4)
    with pytest.raises(ValueError, match=r"augmentation: got 'HorizontalFlip\(probability=0\.5\)', expected"):
        build(train, test=train, augmentation=HorizontalFlip())


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match=r"unknown options \['validation_fractoin'\]"):
        build(validation_fractoin=0.1)


@pytest.mark.parametrize(
    ("pixels", "targets", "words"),
    [
        (torch.zeros(4, 2).double(), torch.zeros(4).long(), "uint8 or float32 .* got torch.float64"),
        (torch.zeros(4, 2), torch.zeros(4), "targets in int64"),
        (torch.zeros(4, 2), torch.zeros(3).long(), r"got \[4, 2\] and \[3\]"),
        (torch.zeros(4, 2, 2), torch.zeros(4).long(), r"got \[4, 2, 2\] and \[4\]"),
    ],
)
def test_samples_of_another_form_are_refused(pixels, targets, words):
    with pytest.raises(ValueError, match=words):
        Source(pixels, targets)


def vectors(count=40, seed=0):
    return Source(
        torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 4
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_samples_that_are_not_finite_are_named_in_any_split(value, split):
    """3e38 overflows once it is divided by the deviation."""
    sources = {name: vectors(12, seed) for seed, name in enumerate(("train", "validation", "test"))}
    sources[split].pixels[7, 2] = sources[split].pixels[9, 0] = value
    words = rf"2 of 12 {split} samples hold NaN or inf once they are normalised; the first is sample 7; mend"
    with pytest.raises(ValueError, match=words):
        build(sources["train"], **{name: sources[name] for name in ("validation", "test")}, validation_fraction=None,
              pixel_max=1)  # fmt: skip


def test_samples_that_are_not_finite_are_named_where_they_were_loaded():
    train = vectors(2000)
    train.pixels[1900, 3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 500 validation|1 of 1,500 train samples") as raised:
        build(train, test=vectors(12, 1))
    assert "(row 1900 of what was loaded)" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [float("nan")]}, says("mean", "finite")),
        ({"std": [float("inf")]}, says("std", "finite")),
        ({"std": [float("nan")]}, says("std", "finite")),
        ({"pixel_max": 0}, says("pixel_max", "0.0")),
        ({"class_names": "abca"}, r"a name of its own for each class, got \['a'\] more than once"),
        (
            {"class_names": ["a", "b", "c", "\udcff"]},
            r"the class name '\\udcff' is not valid UTF-8; rename it",
        ),
        ({"test": Source(torch.zeros(0, 1, 4, 4), torch.zeros(0).long())}, "the test split has no sample"),
    ],
)
def test_values_that_would_spoil_every_input_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_one_class_may_be_all_that_a_test_split_has():
    assert build(
        test=Source(source(12, seed=1).pixels, torch.zeros(12).long())
    ).test.targets.unique().tolist() == [0]


def test_names_of_classes_are_part_of_the_fingerprint():
    base, renamed, reordered = build(), build(class_names="abce"), build(class_names="bacd")
    assert len({base.fingerprint, renamed.fingerprint, reordered.fingerprint}) == 3
    assert base.batches_fingerprint == renamed.batches_fingerprint == reordered.batches_fingerprint
    assert base.test.fingerprint == renamed.test.fingerprint


def test_batches_have_the_fingerprint_that_version_0_1_recorded():
    data = digits(name="digits", mean=[0.3053], std=[0.3760], test_fraction=0.2, validation_fraction=0.15)
    assert data.batches_fingerprint == "8e5f068e748800c1"
    assert data.test.fingerprint == "b820275ba1d7b926"
