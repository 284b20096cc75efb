"""The Kullback-Leibler divergence of two softmaxes, exact in float32 at any temperature.

``T^2 KL`` of logits over T is wanted at a high T too, where both distributions are nearly uniform: the difference of
their log-probabilities, about ``1 / T``, then drowns in the rounding of the log-probabilities themselves, and ``T^2``
enlarges what is left. Here only the difference of the logits enters, which knows no such rounding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_NEAR = 0.5  # below it the series of `_excess` is exact in float32


def divergence(t: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(softmax(t) || softmax(t + difference))``, and the mean of the difference under softmax(t).

    Args:
        t: logits ``[..., K]``, differentiable.
        difference: ``[..., K]``, differentiable.

    Returns:
        Both ``[...]``. Their sum is ``logsumexp(t + difference) - logsumexp(t)``.
    """
    log_q = F.log_softmax(t, dim=-1)
    q = log_q.exp()
    mean = (q * difference).sum(dim=-1, keepdim=True)
    b = difference - mean
    # KL = log E_q[e^b] with E_q[b] = 0, so that E_q[e^b] - 1 = E_q[e^b - 1 - b]: nothing cancels.
    near = b.abs().amax(dim=-1, keepdim=True) < _NEAR
    small = torch.log1p((q * _excess(torch.where(near, b, 0.0))).sum(dim=-1))
    large = (log_q + torch.where(near, 0.0, b)).logsumexp(dim=-1)
    return torch.where(near[..., 0], small, large), mean[..., 0]


def to_mixture(share: float, log_ratio: Tensor) -> Tensor:
    """``log((1 - share) p + share q) - log p``, where ``log_ratio`` is ``log q - log p``; exact where it is small."""
    near = log_ratio.abs() < 1
    small = torch.log1p(share * torch.expm1(torch.where(near, log_ratio, 0.0)))
    large = torch.logaddexp(
        log_ratio.new_tensor(math.log1p(-share)), math.log(share) + torch.where(near, 0.0, log_ratio)
    )
    return torch.where(near, small, large)


def _excess(x: Tensor) -> Tensor:
    """``e^x - 1 - x`` for ``|x| < 0.5`` by its series."""
    series = torch.ones_like(x)
    for k in (8, 7, 6, 5, 4, 3):
        series = 1 + x / k * series
    return x.square() / 2 * series
