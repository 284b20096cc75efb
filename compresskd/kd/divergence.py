"""The Kullback-Leibler divergence of two softmaxes, and Jensen and Shannon's, exact in float32 at any temperature.

``T^2 KL`` of logits over T is wanted at a high T too, where both distributions are nearly uniform: the difference of
their log-probabilities, about ``1 / T``, then drowns in the rounding of the log-probabilities themselves, and ``T^2``
enlarges what is left. Here only the difference of the logits enters, which knows no such rounding.

The logits of a language model are hundreds of megabytes, each pass over which is felt. So value and gradient are each
computed of a few rows at a time, which stay in the cache, and nothing but the arguments is kept between the two. Of
logits that are small altogether the calls are what is felt, so that there what both need is kept.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NEAR = 0.5  # below it the series of `_excess` is exact in float32
_FAR = 60.0  # up to here e^x makes up for what a share that underflows has lost
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
    return cast(tuple[Tensor, Tensor], _Divergence.apply(t, difference, None))


def divergence_between(t: Tensor, s: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """``KL(softmax(t / T) || softmax(s / T))``, and the mean of ``(s - t) / T`` under softmax(t / T).

    Args:
        t: logits ``[..., K]``, differentiable once.
        s: ``[..., K]``, differentiable once.
        temperature: T.

    Returns:
        Both ``[...]``.
    """
    return cast(tuple[Tensor, Tensor], _Divergence.apply(t, s, float(temperature)))


def jensen_shannon(t: Tensor, s: Tensor, temperature: float = 1.0, beta: float = 0.5) -> Tensor:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``.

    Args:
        t: logits ``[..., K]`` whose softmax over T is p, differentiable once.
        s: ``[..., K]`` of q, differentiable once.
        temperature: T.
        beta: the share of p in the mixture, in (0, 1).

    Returns:
        ``[...]``.
    """
    return cast(Tensor, _JensenShannon.apply(t, s, float(temperature), float(beta)))


class _Divergence(torch.autograd.Function):
    """`apply(t, difference, None)` or `apply(t, s, temperature)`: the divergence and the mean.

    With q = softmax(t), p = softmax(t + d) and b = d - E_q[d], the divergence is log E_q[e^b], so that log p - log q
    is b less the divergence. Its gradient is p - q by d, and p - q - q b by t; that of the mean q, and q b. Where d is
    s - t, by t it is -q b in all, and that of the mean q b - q.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, t: Tensor, other: Tensor, temperature: float | None
    ) -> tuple[Tensor, Tensor]:
        """Both [...]."""
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        parts = [_values(*_cooled(*rows, temperature)) for _, rows in _by_rows(t, other)]
        kl, mean = (_joined([part[place] for part in parts]) for place in (0, 1))
        ctx.save_for_backward(t, other, kl, mean, *(parts[0][2:] if _is_small(t) else ()))
        return kl.view(t.shape[:-1]), mean.view(t.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, of_kl: Tensor | None, of_mean: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of t and of the other."""
        t, other, kl, mean, *kept = ctx.saved_tensors
        temperature, (needs_t, needs_other, _) = ctx.temperature, ctx.needs_input_grad
        by_kl, by_mean = _column(of_kl, kl, temperature), _column(of_mean, kl, temperature)

        def gradients(place: slice, rows: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
            q, b = kept or _shares(*_cooled(*rows, temperature), mean[place])
            apart = of_t = of_other = None
            if needs_other or temperature is None:
                apart = _apart(q, b, kl[place], rows, temperature).mul_(by_kl[place])
            if needs_t:
                of_t = (q * b).mul_(by_mean[place] - by_kl[place])
                # where the difference holds t as well, what it adds takes p - q off again, and q of the mean
                if apart is not None and temperature is None:
                    of_t += apart
                else:
                    of_t.addcmul_(q, by_mean[place], value=-1)
            if apart is not None and needs_other:
                of_other = apart.addcmul_(q, by_mean[place])
            return of_t, of_other

        return (*_over_rows(gradients, t, other), None)


class _JensenShannon(torch.autograd.Function):
    """`apply(t, s, temperature, beta)`.

    With p and q the softmaxes of t and s, and m the mixture, its gradient is beta p (log(p / m) - KL(p || m)) by t,
    and (1 - beta) q (log(q / m) - KL(q || m)) by s.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, t: Tensor, s: Tensor, temperature: float, beta: float
    ) -> Tensor:
        """[...]."""
        ctx.temperature, ctx.beta = temperature, beta
        needed = ctx.needs_input_grad[:2] if _is_small(t) else (False, False)
        parts = [_mixed(*_cooled(*rows, temperature), beta, needed) for _, rows in _by_rows(t, s)]
        ctx.save_for_backward(t, s, *parts[0][1:])
        return _joined([part[0] for part in parts]).view(t.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of t and s."""
        t, s, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        by_value = _column(upstream, upstream, ctx.temperature)

        def gradients(place: slice, rows: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
            found = kept
            if all(each is None for each in kept):
                _, *found = _mixed(*_cooled(*rows, ctx.temperature), ctx.beta, needed)
            return tuple(None if each is None else each * by_value[place] for each in found)

        return (*_over_rows(gradients, t, s), None, None)


def _is_small(t: Tensor) -> bool:
    """Whether more is kept for the gradient than the arguments; then its rows are all taken at once."""
    return t.numel() <= _AT_ONCE


def _by_rows(t: Tensor, other: Tensor) -> list[tuple[slice, tuple[Tensor, Tensor]]]:
    """A few rows [n, K] of each at a time, and which they are."""
    most = _AT_ONCE if t.device.type == "cpu" else _AT_ONCE_ON_DEVICE
    whole = t.reshape(-1, t.shape[-1]), other.reshape(-1, t.shape[-1])
    count = max(1, most // max(1, t.shape[-1]))
    if len(whole[0]) <= count:
        return [(slice(None), whole)]
    places = [slice(start, start + count) for start in range(0, len(whole[0]), count)]
    return [(place, (whole[0][place], whole[1][place])) for place in places]


def _over_rows(
    function: Callable[[slice, tuple[Tensor, Tensor]], tuple[Tensor | None, ...]], t: Tensor, other: Tensor
) -> list[Tensor | None]:
    """What the function gives of each few rows, [n, K] or None, put together in the shape of t."""
    chunks = _by_rows(t, other)
    if len(chunks) == 1:
        return [None if each is None else each.view(t.shape) for each in function(*chunks[0])]
    wholes: list[Tensor | None] = []
    for place, rows in chunks:
        parts = function(place, rows)
        wholes = wholes or [None if each is None else t.new_empty(t.shape) for each in parts]
        for whole, part in zip(wholes, parts, strict=True):
            if whole is not None and part is not None:
                whole.view(-1, t.shape[-1])[place] = part
    return wholes


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _column(upstream: Tensor | None, like: Tensor, temperature: float | None) -> Tensor:
    """A gradient by each row, [n, 1], which is one by logits over the temperature."""
    if upstream is None:
        return torch.zeros_like(like)
    column = upstream.reshape(-1, 1)
    return column if temperature is None or temperature == 1 else column / temperature


def _cooled(t: Tensor, other: Tensor, temperature: float | None) -> tuple[Tensor, Tensor]:
    """t at the temperature, and the difference."""
    if temperature is None:
        return t, other
    return (t, other - t) if temperature == 1 else (t / temperature, (other - t).div_(temperature))


def _values(t: Tensor, difference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The divergence and the mean, each [n, 1], and the shares and the centred difference, of rows [n, K]."""
    q = t.softmax(dim=-1)
    mean = (q * difference).sum(dim=-1, keepdim=True)
    b = difference - mean
    bounds = _bounds(b)
    # KL = log E_q[e^b] with E_q[b] = 0, so that E_q[e^b] - 1 = E_q[e^b - 1 - b]: nothing cancels
    kl = _excess(b, bounds).mul_(q).sum(dim=-1, keepdim=True).log1p_()
    far = _far(b, bounds)
    if far is not None:
        kl = torch.where(far, (t.log_softmax(dim=-1) + b).logsumexp(dim=-1, keepdim=True), kl)
    return kl, mean, q, b


def _shares(t: Tensor, difference: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """As in `_values`."""
    return t.softmax(dim=-1), difference - mean


def _apart(
    q: Tensor, b: Tensor, kl: Tensor, rows: tuple[Tensor, Tensor], temperature: float | None
) -> Tensor:
    """p - q, in which nothing cancels."""
    apart = (b - kl).expm1_().mul_(q)
    far = _far(b, _bounds(b))
    if far is None:
        return apart
    t, difference = _cooled(*rows, temperature)
    return torch.where(far, (t + difference).softmax(dim=-1) - q, apart)


def _mixed(
    t: Tensor, difference: Tensor, beta: float, needed: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The divergence to the mixture [n, 1], and its gradients by both that are needed, of rows [n, K]."""
    kl, _, p, b = _values(t, difference)
    log_ratio = b.sub_(kl)  # log q - log p
    q = (t + difference).softmax(dim=-1)
    value, found = torch.zeros_like(kl), []
    for weight, share, other, ratio, wanted in (
        (beta, p, q, log_ratio, needed[0]),
        (1 - beta, q, p, -log_ratio, needed[1]),
    ):
        to_m = _to_mixture(1 - weight, ratio)  # log m less the own logarithm, of which e^to_m - 1 has mean 0
        bounds = _bounds(to_m)
        parts = _excess(to_m, bounds).mul_(share)
        if _far(to_m, bounds) is not None:
            direct = weight * share + (1 - weight) * other - share * (1 + to_m)
            parts = torch.where(to_m < _FAR, parts, direct)
        own = parts.sum(dim=-1, keepdim=True)
        value += weight * own
        found.append(_centred(to_m, share).mul_(share).mul_(-weight) if wanted else None)
    return value, *found


def _centred(x: Tensor, share: Tensor) -> Tensor:
    """x less its mean, by way of its value where the share is largest: of a share that is nearly 1 little is left."""
    x = x - x.gather(-1, share.argmax(dim=-1, keepdim=True))
    return x.sub_((x * share).sum(dim=-1, keepdim=True))


def _to_mixture(share: float, log_ratio: Tensor) -> Tensor:
    """``log((1 - share) p + share q) - log p``, where ``log_ratio`` is ``log q - log p``; exact where it is small."""
    capped = log_ratio.clamp(max=1)
    change = share * torch.expm1(capped)
    if _bounds(log_ratio)[1] < 1:
        return change.log1p_()
    # where q is much the larger, its logarithm is what is left
    more = log_ratio - capped
    return change.add_((-more).expm1_(), alpha=1 - share).log1p_().add_(more)


def _bounds(x: Tensor) -> tuple[float, float]:
    """The least and the largest number, not known of a device, for which nobody waits."""
    if x.device.type != "cpu":
        return -math.inf, math.inf
    if not x.numel():
        return 0.0, 0.0
    least, most = x.aminmax()
    return float(least), float(most)


def _far(x: Tensor, bounds: tuple[float, float]) -> Tensor | None:
    """Which rows [n, 1] hold a number of `_FAR` or more, or not a number; None where it is known that none does."""
    return None if bounds[1] < _FAR else ~(x.amax(dim=-1, keepdim=True) < _FAR)


def _excess(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """``e^x - 1 - x``, up to `_FAR`."""
    if bounds[0] > -_NEAR and bounds[1] < _NEAR:
        return _series(x)
    if not bounds[1] < _FAR:
        x = x.clamp(max=_FAR)
    # a choice by element would take longer than all of this: e^(c + r) - 1 - (c + r), where c is near
    near = x.clamp(-_NEAR, _NEAR)
    found, more = _series(near), x - near
    return near.add_(1).add_(found).mul_(more.expm1()).add_(found).sub_(more)


def _series(x: Tensor) -> Tensor:
    """`_excess` where x is below one half: x^2 / 2 (1 + x / 3 (1 + x / 4 (1 + ...)))."""
    one = x.new_ones(())
    series = (x / 8).add_(1)
    for k in (7, 6, 5, 4, 3):
        torch.addcmul(one, x, series, value=1 / k, out=series)
    return series.mul_(x).mul_(x).div_(2)
