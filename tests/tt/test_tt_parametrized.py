"""Cores under a parametrization (as quantization puts on them): evaluation sees every change."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from compresskd import tt


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = 1.0

    def forward(self, core):
        return self.factor * core


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(64, 48), (5, 64)),
        (lambda: nn.Conv2d(16, 16, 3, padding=1), (2, 16, 6, 6)),
        (lambda: nn.Embedding(200, 32), None),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_outputs_follow_the_parametrization(make, shape):
    torch.manual_seed(0)
    layer, x = make(), torch.arange(7) if shape is None else torch.randn(shape)
    factorized = tt.factorize(layer, rank=3).eval()
    if getattr(factorized, "bias", None) is not None:
        nn.init.zeros_(factorized.bias)
    with torch.no_grad():
        before = factorized(x)
        scaled = Scaled()
        parametrize.register_parametrization(factorized.cores, "0", scaled)
        for factor in (1.0, 2.0, -3.0, 0.5):
            scaled.factor = factor
            for _ in range(2):  # a second call must not find what the first one kept
                torch.testing.assert_close(factorized(x), factor * before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(64, 48), (5, 64)),
        (lambda: nn.Conv2d(16, 16, 3, padding=1), (2, 16, 6, 6)),
        (lambda: nn.Linear(64, 48, bias=False), (5, 64)),
    ],
    ids=["linear", "conv", "no bias"],
)
def test_outputs_follow_a_parametrized_bias(make, shape):
    factorized, x = tt.factorize(make(), rank=3).eval(), torch.randn(shape)
    with torch.inference_mode():
        before = factorized(x)  # something is kept of it
    if factorized.bias is not None:
        with torch.no_grad():
            factorized.bias.fill_(1.0)
        scaled = Scaled()
        parametrize.register_parametrization(factorized, "bias", scaled)
        with torch.inference_mode():
            one = factorized(x)
            for factor in (2.0, -3.0, 0.5):
                scaled.factor = factor
                torch.testing.assert_close(factorized(x), one + factor - 1, rtol=1e-3, atol=1e-4)
    else:
        with torch.inference_mode():
            torch.testing.assert_close(factorized(x), before)
