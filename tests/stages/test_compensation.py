"""Layers that are fitted to what the compressed layers before them give."""

import pytest
import small_architectures
import torch
from torch import nn

import compresskd
from compresskd.compression.block_calls import num_calls

OPTIONS = {"method": "svd", "whitening": "input", "num_calibration": 4096}


def error(model, small, x):
    """Relative, of all answers."""
    with torch.no_grad():
        exact = model(x)
        return float((small(x) - exact).norm() / exact.norm())


def mixed(*shape):
    """Inputs that vary in some directions far more than in others."""
    x = torch.randn(*shape)
    return x * torch.linspace(0.1, 2, shape[1]).view(-1, *[1] * (len(shape) - 2))


def test_the_second_of_two_layers_is_the_reduced_rank_regression_on_what_the_first_gives():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 20, bias=False), nn.Linear(20, 16, bias=False)), mixed(2000, 24)
    small = compresskd.compress(model, x, rank=5, compensation="sequential", damping=[0.0, 0.0], **OPTIONS)
    with torch.no_grad():
        given, wanted = small[0](x).double(), model(x).double()
        fitted = given @ torch.linalg.lstsq(given, wanted, rcond=1e-4, driver="gelsd").solution
        U, S, V = torch.linalg.svd(fitted, full_matrices=False)
        best = (U[:, :5] * S[:5]) @ V[:5]
    least = float((best - wanted).norm() / wanted.norm())
    assert error(model, small, x) == pytest.approx(least, rel=1e-3)


def test_errors_of_a_deep_network_are_made_up_for():
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(32, 32), nn.Tanh())))
    x = mixed(2000, 32)
    errors = {}
    for compensation in ("none", "sequential"):
        small = compresskd.compress(model, x, rank=10, compensation=compensation, **OPTIONS)
        errors[compensation] = error(model, small, x)
    assert errors["sequential"] < 0.9 * errors["none"]


@pytest.mark.slow
def test_trains_of_several_cores_and_convolutions_are_fitted_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 64),
    )  # fmt: skip
    x, errors = torch.randn(512, 3, 8, 8), {}
    options = {**OPTIONS, "method": "tensor_train", "num_cores": 3, "rank": 6, "exclude": ["0"]}
    for compensation in ("none", "sequential"):
        small = compresskd.compress(model, x, compensation=compensation, **options)
        errors[compensation] = error(model, small, x)
    assert errors["sequential"] < 0.95 * errors["none"]


class Repeated(nn.Module):
    """A stack of blocks, each of which runs twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.Tanh()) for _ in range(2))

    def forward(self, x):
        for block in (*self.blocks, *self.blocks):
            x = x + block(x)
        return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blocks"),
    [("llama", "*.layers.*"), ("gpt2", "*.h.*"), ("bert", "*.layer.*"), ("t5", "*.block.*")],
)
def test_the_blocks_of_transformers_are_fitted_one_after_the_other(name, blocks):
    torch.manual_seed(0)
    model = small_architectures.build(name).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2.0 if parameter.ndim > 1 else 1.0)
    x = torch.randint(2, small_architectures.VOCABULARY, (96, 12))
    errors, options = {}, {**OPTIONS, "include": [blocks], "method": "interpolative"}
    for compensation in ("none", "sequential"):
        small = compresskd.compress(model, x, rank=12, compensation=compensation, **options)
        errors[compensation] = error(model, small, x)
    assert errors["sequential"] < errors["none"]


def test_a_block_that_runs_twice_is_fitted_in_all_its_uses():
    torch.manual_seed(0)
    model, x, errors = Repeated(), mixed(2000, 24), {}
    assert num_calls(model, ["blocks.0"], x[:2]) == {"blocks.0": 2}
    for compensation in ("none", "sequential"):
        small = compresskd.compress(model, x, rank=8, compensation=compensation, **OPTIONS)
        errors[compensation] = error(model, small, x)
    assert errors["sequential"] < errors["none"]
