import pytest
import torch

from compresskd.models.lenet import LeNet5


def test_parameter_count_is_the_published_one():
    model = LeNet5(num_classes=10, input_shape=[1, 28, 28])
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sizes == {
        "conv1.weight": 500,
        "conv1.bias": 20,
        "conv2.weight": 25_000,
        "conv2.bias": 50,
        "fc1.weight": 400_000,
        "fc1.bias": 500,
        "fc2.weight": 5_000,
        "fc2.bias": 10,
    }
    assert sum(sizes.values()) == 431_080


def test_without_biases_only_weights_are_left():
    model = LeNet5(bias=False, num_classes=10, input_shape=[1, 28, 28])
    assert sum(p.numel() for p in model.parameters()) == 430_500
    assert model(torch.zeros(1, 1, 28, 28)).count_nonzero() == 0


@pytest.mark.parametrize(
    ("input_shape", "padding"),
    [([1, 28, 28], 0), ([3, 32, 32], 0), ([1, 16, 19], 0), ([2, 16, 16], 0), ([1, 8, 8], 2), ([1, 4, 4], 2)],
)
def test_other_input_shapes_work(input_shape, padding):
    model = LeNet5(padding=padding, num_classes=7, input_shape=input_shape)
    assert model(torch.randn(3, *input_shape)).shape == (3, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_shape": [1, 15, 28]}, r"at least 16x16 pixels, got 15x28 .*choose `padding: 2`"),
        ({"input_shape": [1, 3, 3], "padding": 2}, "padding 2 needs images of at least 4x4 pixels, got 3x3"),
        ({"input_shape": [64]}, r"needs images, .* got \[64\]; choose `mlp`"),
        ({"padding": -1}, "padding: got -1, expected >= 0"),
        ({"num_classes": 0}, "num_classes: got 0, expected >= 1"),
    ],
)
def test_arguments_that_cannot_be_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        LeNet5(**{"num_classes": 10, "input_shape": [1, 28, 28], **options})
