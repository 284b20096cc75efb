"""The differentiable side of entropy coding: a loss term that gives the coder something to gain."""

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from compresskd.quant.grid import spread
from compresskd.quant.prepare import parametrized


def soft_entropy(weight: Tensor, scale: Tensor, zero_point: Tensor | None, quant: Any) -> Tensor:
    """Differentiable estimate of the entropy of the rounded weight, in bits a weight; a scalar.

    Every weight counts for its two nearest levels in proportion to its nearness (a triangular kernel); the
    entropy is that of these soft frequencies. It equals the empirical one where weights lie on levels.
    Soft-to-hard quantization (Agustsson et al. 2017, arXiv:1704.00648, section 3) with linear assignments.

    Args:
        weight: float weights.
        scale: [S].
        zero_point: [S] or None.
        quant: anything with `grid` and `granularity`, such as `FakeQuant`.
    """
    grid = quant.grid
    wide_scale, offset = spread(scale, zero_point, grid, quant.granularity, weight.shape)
    shift = -grid.shift if offset is None else offset
    codes = (weight.float() / wide_scale + shift - grid.low).clamp(0, grid.num_levels - 1).reshape(-1)
    below = codes.detach().floor().clamp(max=grid.num_levels - 2)
    share = codes - below
    index = below.long()
    frequencies = torch.zeros(grid.num_levels, device=weight.device)
    frequencies = frequencies.index_add(0, index, 1 - share).index_add(0, index + 1, share) / codes.numel()
    return -torch.special.xlogy(frequencies, frequencies.clamp(min=1e-12)).sum() / log(2.0)


def entropy_penalty(module: nn.Module) -> Tensor:
    """Mean `soft_entropy` of all prepared weights, in bits a weight: a loss term for quantization-aware training.

    Raises:
        ValueError: nothing in `module` was prepared.
    """
    total, count = torch.zeros(()), 0
    for _, quant, weight in parametrized(module):
        total = total.to(weight.device) + weight.numel() * soft_entropy(
            weight, quant.scale, quant.zero_point, quant
        )
        count += weight.numel()
    if not count:
        raise ValueError("entropy: nothing in this model is quantized; call prepare first")
    return total / count
