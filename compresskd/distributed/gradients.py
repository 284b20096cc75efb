"""Gradients of all processes, added up while others are still computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compresskd.distributed.group import Group, ProcessLost

_BUCKET = 2**20  # numbers that are sent together: 4 MiB in float32


@dataclass
class _Bucket:
    """Parameters of one dtype and device, whose gradients are sent as one tensor."""

    parameters: list[nn.Parameter]
    flat: Tensor  # their gradients, one after the other
    views: list[Tensor]  # of `flat`, in the shape and the order in memory of each parameter
    awaited: int = 0  # gradients that the backward pass has yet to give
    work: Any = None  # of sending

    @classmethod
    def of(cls, parameters: list[nn.Parameter]) -> _Bucket:
        flat = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype,
                           device=parameters[0].device)  # fmt: skip
        parts = flat.split([p.numel() for p in parameters])
        strides = [torch.empty_like(p, device="meta").stride() for p in parameters]
        views = [part.as_strided(p.shape, s, part.storage_offset())
                 for part, p, s in zip(parts, parameters, strides, strict=True)]  # fmt: skip
        return cls(parameters, flat, views)


class Gradients:
    """The sums over all processes of the gradients of parameters.

    A bucket is sent as soon as the backward pass has given all of it, in the order of the buckets, which is the same
    in every process, and by a channel of its own: what is called meanwhile may come before or after it. The sums
    become the gradients themselves and are not copied.

    A parameter without a gradient in every process keeps none, as an optimizer leaves it alone then; without one in
    some of them it has that of the others.

    Args:
        parameters: in the order in which a forward pass uses them; the last ones are the first to have gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group) -> None:
        self._parameters, self._group = parameters, group
        self._buckets = [_Bucket.of(each) for each in _split(parameters)] if group.world > 1 else []
        self._num_sent, self._is_last = 0, False
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._came(bucket))
            for bucket in self._buckets
            for p in bucket.parameters
            if p.requires_grad
        ]

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def last(self) -> Iterator[None]:
        """Within, the backward pass is the last one of an update: what it has given is sent."""
        for bucket in self._buckets:
            bucket.awaited = sum(p.requires_grad for p in bucket.parameters)
        self._is_last = True
        try:
            yield
        finally:
            self._is_last = False

    @torch.no_grad()
    def add_up(self, values: Tensor) -> Tensor:
        """Replace each gradient by its sum over all processes; returns the sum of `values` [n] float32."""
        if self._group.world == 1:
            return values
        has = values.new_tensor([float(p.grad is not None) for p in self._parameters])
        try:
            for bucket in self._buckets[self._num_sent :]:  # which the backward pass has not given all of
                self._send(bucket)
            told = self._group.sum(torch.cat([values, has]))
            for work in filter(None, [bucket.work for bucket in self._buckets]):
                work.wait()
        except ProcessLost:
            raise
        except RuntimeError as error:
            raise ProcessLost(self._group.whom(error)) from error
        self._num_sent = 0
        values, has = told.split([len(values), len(has)])
        sums = {
            p: view
            for bucket in self._buckets
            for p, view in zip(bucket.parameters, bucket.views, strict=True)
        }
        for p, count in zip(self._parameters, has.tolist(), strict=True):
            p.grad = sums[p] if count else None
        return values

    def _came(self, bucket: _Bucket) -> None:
        if not self._is_last:
            return
        bucket.awaited -= 1
        try:
            while self._num_sent < len(self._buckets) and not self._buckets[self._num_sent].awaited:
                self._send(self._buckets[self._num_sent])
        except RuntimeError as error:
            raise ProcessLost(self._group.whom(error)) from error

    @torch.no_grad()
    def _send(self, bucket: _Bucket) -> None:
        for view, p in zip(bucket.views, bucket.parameters, strict=True):
            view.zero_() if p.grad is None else view.copy_(p.grad)
        bucket.work = dist.all_reduce(bucket.flat, group=self._group.channel, async_op=True)
        self._num_sent += 1


def _split(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device each, in the order in which gradients become known."""
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
