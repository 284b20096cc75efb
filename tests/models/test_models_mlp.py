import pytest
import torch

from compresskd.models.mlp import MLP


def test_lenet_300_100_has_the_published_parameter_count():
    model = MLP(hidden=[300, 100], num_classes=10, input_shape=[1, 28, 28])
    assert sum(p.numel() for p in model.parameters()) == 266_610


def test_layers_are_named_in_order_and_images_are_flattened():
    model = MLP(hidden=[5, 4, 3], num_classes=2, input_shape=[1, 8, 8])
    assert [name for name, _ in model.named_children()] == ["fc1", "fc2", "fc3", "fc4"]
    x_BCHW = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x_BCHW), model(x_BCHW.flatten(1)), rtol=0, atol=0)


def test_forward_equals_the_formula():
    torch.manual_seed(0)
    model = MLP(hidden=[5], activation="tanh", num_classes=2, input_shape=[7]).double()
    x_BF = torch.randn(4, 7, dtype=torch.float64)
    p = dict(model.named_parameters())
    expected = torch.tanh(x_BF @ p["fc1.weight"].T + p["fc1.bias"]) @ p["fc2.weight"].T + p["fc2.bias"]
    torch.testing.assert_close(model(x_BF), expected, rtol=1e-12, atol=1e-12)


def test_without_biases_only_weights_are_left():
    model = MLP(hidden=[300, 100], bias=False, num_classes=10, input_shape=[1, 28, 28])
    assert [tuple(p.shape) for p in model.parameters()] == [(300, 784), (100, 300), (10, 100)]


def test_no_hidden_layer_is_a_linear_classifier():
    model = MLP(hidden=[], num_classes=3, input_shape=[7])
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 7), (3,)]
    assert model(torch.randn(2, 7)).shape == (2, 3)


def test_a_replaced_layer_is_the_one_that_runs():
    model = MLP(hidden=[5], num_classes=2, input_shape=[7])
    model.fc2 = torch.nn.Linear(5, 9)
    assert model(torch.randn(2, 7)).shape == (2, 9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": [16, 0]}, r"hidden\[1\]: got 0, expected >= 1"),
        ({"hidden": 16}, r"hidden: got 16, expected a list: \[a, b\]"),
        ({"hidden": [2.5]}, r"hidden\[0\]: got 2\.5, expected a whole number"),
        ({"activation": "rleu"}, "activation: got 'rleu', expected"),
        ({"num_classes": 0}, "num_classes: got 0, expected >= 1"),
        ({"num_classes": None}, "num_classes: got null, expected a whole number"),
        ({"num_classes": True}, "num_classes: got true, expected a whole number"),
        ({"input_shape": None}, r"input_shape: got null, expected a list: \[a, b\]"),
        ({"input_shape": []}, r"input_shape: got \[\], expected 1 or more of them"),
        ({"input_shape": [1, -8, 8]}, r"input_shape\[1\]: got -8, expected >= 1"),
    ],
)
def test_arguments_that_cannot_be_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        MLP(**{"num_classes": 10, "input_shape": [64], **options})
