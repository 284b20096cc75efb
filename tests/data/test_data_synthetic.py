import pytest
import torch

from compresskd.data.synthetic import synthetic


def make(**options):
    defaults = {
        "name": "synthetic",
        "num_classes": 3,
        "input_shape": [1, 8, 8],
        "num_train": 300,
        "num_test": 90,
        "separation": 0.5,
        "data_seed": 0,
        "validation_fraction": 0.2,
    }
    return synthetic(**{**defaults, **options})


def nearest_centre_accuracy(data):
    (train,), (test,) = data.train.batches(len(data.train)), data.test.batches(len(data.test))
    centres = torch.stack([train.inputs[train.targets == label].flatten(1).mean(0) for label in range(3)])
    predicted = torch.cdist(test.inputs.flatten(1), centres).argmin(1)
    return float((predicted == test.targets).float().mean())


@pytest.mark.parametrize(
    ("shape", "dtype"), [([1, 8, 8], torch.uint8), ([3, 5, 4], torch.uint8), ([64], torch.float32)]
)
def test_shapes_and_that_it_can_be_learned(shape, dtype):
    data = make(input_shape=shape)
    assert data.input_shape == tuple(shape)
    assert data.train.pixels.dtype == dtype
    assert [len(split) for split in (data.train, data.validation, data.test)] == [240, 60, 90]
    assert nearest_centre_accuracy(data) > 0.9
    (batch,) = data.train.batches(240)
    assert float(batch.inputs.std()) == pytest.approx(1.12, abs=0.06)


def test_the_seed_decides():
    assert make().fingerprint == make().fingerprint
    assert make().fingerprint != make(data_seed=1).fingerprint
    assert nearest_centre_accuracy(make(separation=0.0)) < 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, "num_classes: got 1, expected >= 2"),
        ({"input_shape": [4, 4]}, r"input_shape: got \[4, 4\], expected"),
        ({"num_test": 2}, "num_test: got 2, expected >= 3, one a class"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)
