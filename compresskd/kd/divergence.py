"""The Kullback-Leibler divergence of two softmaxes, exact in float32 at any temperature.

``T^2 KL`` of logits over T is wanted at a high T too, where both distributions are nearly uniform: the difference of
their log-probabilities, about ``1 / T``, then drowns in the rounding of the log-probabilities themselves, and ``T^2``
enlarges what is left. Here only the difference of the logits enters, which knows no such rounding.

The logits of a language model are hundreds of megabytes, each pass over which is felt. So value and gradient are each
computed of a few rows at a time, which stay in the cache, and nothing but the arguments is kept between the two.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_NEAR = 0.5  # below it the series of `_excess` is exact in float32
_AT_ONCE = 1 << 17  # numbers on a processor; a device has a call for each part, and takes more
_AT_ONCE_ON_DEVICE = 1 << 26


def divergence(t: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """``KL(softmax(t) || softmax(t + difference))``, and the mean of the difference under softmax(t).

    Args:
        t: logits ``[..., K]``, differentiable once.
        difference: ``[..., K]``, differentiable once.

    Returns:
        Both ``[...]``. Their sum is ``logsumexp(t + difference) - logsumexp(t)``.
    """
    kl, mean, *_ = cast(tuple[Tensor, ...], _Divergence.apply(t, difference, None))
    return kl, mean


def divergence_between(t: Tensor, s: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """``KL(softmax(t / T) || softmax(s / T))``, and the mean of ``(s - t) / T`` under softmax(t / T).

    Args:
        t: logits ``[..., K]``, differentiable once.
        s: ``[..., K]``, differentiable once.
        temperature: T.

    Returns:
        Both ``[...]``.
    """
    kl, mean, *_ = cast(tuple[Tensor, ...], _Divergence.apply(t, s, float(temperature)))
    return kl, mean


class _Divergence(torch.autograd.Function):
    """`apply(t, difference, None)` or `apply(t, s, temperature)`: the divergence, the mean, and which rows are near.

    With q = softmax(t), p = softmax(t + d) and b = d - E_q[d], the divergence is log E_q[e^b], so that log p - log q
    is b less the divergence. Its gradient is p - q by d, and p - q - q b by t; that of the mean q, and q b. Where d is
    s - t, by t it is -q b in all, and that of the mean q b - q.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        t: Tensor, other: Tensor, temperature: float | None
    ) -> tuple[Tensor, ...]:
        """All three [...]."""
        parts = [_values(*_cooled(*rows, temperature)) for rows in _by_rows(t, other)]
        return tuple(torch.cat(each).reshape(t.shape[:-1]) for each in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the arguments and what was found of each row."""
        t, other, ctx.temperature = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(t, other, *output)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, of_kl: Tensor | None, of_mean: Tensor | None, _: None
    ):
        """Gradients of t and of the other."""
        t, other, *of_rows = ctx.saved_tensors
        of_rows += [torch.zeros_like(of_rows[0]) if each is None else each for each in (of_kl, of_mean)]
        columns = [each.reshape(-1, 1) for each in of_rows]
        # contiguous, so that rows of them are views
        found = [t.new_empty(t.shape) if needed else None for needed in ctx.needs_input_grad[:2]]
        start = 0
        for rows in _by_rows(t, other):
            place = slice(start, start + len(rows[0]))
            outs = [None if each is None else _rows(each)[place] for each in found]
            _write_gradients(rows, [each[place] for each in columns], ctx.temperature, *outs)
            start = place.stop
        return (*found, None)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _by_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few rows [n, K] of each at a time."""
    most = _AT_ONCE if tensors[0].device.type == "cpu" else _AT_ONCE_ON_DEVICE
    count = max(1, most // max(1, tensors[0].shape[-1]))
    return zip(*(_rows(each).split(count) for each in tensors), strict=True)


def _cooled(t: Tensor, other: Tensor, temperature: float | None) -> tuple[Tensor, Tensor]:
    """t at the temperature, and the difference."""
    if temperature is None:
        return t, other
    return (t, other - t) if temperature == 1 else (t / temperature, (other - t).div_(temperature))


def _values(t: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The divergence, the mean, and which are near, each [n], of rows [n, K]."""
    log_q = F.log_softmax(t, dim=-1)
    q = log_q.exp()
    mean = (q * difference).sum(dim=-1, keepdim=True)
    b = difference - mean
    near = b.abs().amax(dim=-1, keepdim=True) < _NEAR

    def small() -> Tensor:
        # KL = log E_q[e^b] with E_q[b] = 0, so that E_q[e^b] - 1 = E_q[e^b - 1 - b]: nothing cancels.
        return torch.log1p((q * _excess(b.where(near, 0.0))).sum(dim=-1, keepdim=True))

    def large() -> Tensor:
        return (log_q + b).logsumexp(dim=-1, keepdim=True)

    kl = _by_kind(near, small, large)
    return kl[..., 0], mean[..., 0], near[..., 0]


def _write_gradients(
    rows: tuple[Tensor, Tensor],
    columns: Sequence[Tensor],
    temperature: float | None,
    by_t: Tensor | None,
    by_other: Tensor | None,
) -> None:
    """Of rows [n, K], into those of `by_t` and `by_other` that are wanted.

    Args:
        columns: the divergence, the mean, which are near, and the gradients by the first two, each [n, 1].
    """
    t, difference = _cooled(*rows, temperature)
    kl, mean, near, of_kl, of_mean = columns
    if temperature is not None and temperature != 1:
        of_kl, of_mean = of_kl / temperature, of_mean / temperature
    q, b = t.softmax(dim=-1), difference - mean

    def small() -> Tensor:
        return (b - kl).expm1_().mul_(q)  # p - q, in which nothing cancels

    def large() -> Tensor:
        return (t + difference).softmax(dim=-1).sub_(q)

    apart = torch.zeros(()) if by_other is None and temperature is not None else _by_kind(near, small, large)
    if by_other is not None:
        torch.mul(apart, of_kl, out=by_other).addcmul_(q, of_mean)
    if by_t is not None:
        # where the difference holds t as well, what it adds takes p - q off again, and q of the mean
        first = torch.mul(apart, of_kl, out=by_t) if temperature is None else torch.mul(q, -of_mean, out=by_t)
        first.addcmul_(q.mul_(b), of_mean - of_kl)


def _by_kind(near: Tensor, small: Callable[[], Tensor], large: Callable[[], Tensor]) -> Tensor:
    """The one for rows that are near [n, 1], the other for the rest; both of a device, for which nobody waits."""
    if near.device.type == "cpu":
        if bool(near.all()):
            return small()
        if not bool(near.any()):
            return large()
    return torch.where(near, small(), large())


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
        series = (x / k).mul_(series).add_(1)
    return x.square().div_(2).mul_(series)
