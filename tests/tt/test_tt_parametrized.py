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
    ("layer", "x"),
    [
        (nn.Linear(64, 48), torch.randn(5, 64)),
        (nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 6, 6)),
        (nn.Embedding(200, 32), torch.arange(7)),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_outputs_follow_the_parametrization(layer, x):
    torch.manual_seed(0)
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
                torch.testing.assert_close(factorized(x), factor * before, rtol=1e-4, atol=1e-5)
