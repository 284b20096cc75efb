"""Gradients of all processes, added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compresskd.distributed.group import Group, ProcessLost

_BUCKET = 2**22  # numbers that are sent together: 16 MiB in float32


@torch.no_grad()
def add_up(parameters: Sequence[nn.Parameter], values: Tensor, group: Group) -> Tensor:
    """Replace each gradient by its sum over all processes; returns the sum of `values` [n] float32.

    A parameter without a gradient in every process keeps none, as an optimizer leaves it alone then; without one in
    some of them it has that of the others.
    """
    if group.world == 1:
        return values
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=values.device)
    try:
        told = _send([values, has])
        sent = [(bucket, _send([_gradient(p) for p in bucket])) for bucket in _buckets(parameters)]
        values, has = _received(*told, [values, has])
        for bucket, sending in sent:
            for p, part in zip(bucket, _received(*sending, bucket), strict=True):
                _gradient(p).copy_(part)
    except RuntimeError as error:
        raise ProcessLost(group.whom(error)) from error
    for p, count in zip(parameters, has.tolist(), strict=True):
        if not count:
            p.grad = None
    return values


def _send(tensors: Sequence[Tensor]) -> tuple[Tensor, Any]:
    """Begin to add up tensors of one dtype; several such are on their way at once."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return flat, dist.all_reduce(flat, async_op=True)


def _received(flat: Tensor, work: Any, like: Sequence[Tensor]) -> list[Tensor]:
    if work is not None:
        work.wait()
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device, in the order in which gradients become known."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in reversed(parameters):
        other = bucket and (p.dtype, p.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (other or size + p.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket
