"""The processes of a run, and the few things that they tell each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compresskd.distributed.neighbours import Neighbours

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ProcessLost(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


def _nobody(error: Exception) -> str:
    return f"another process of the run has ended ({(str(error).splitlines() or [''])[0][:200]})"


def _may_lose(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """A collective whose failure says that another process is gone."""

    @functools.wraps(call)
    def told(*args: _P.args, **named: _P.kwargs) -> _T:
        try:
            return call(*args, **named)
        except (
            RuntimeError
        ) as error:  # what torch raises where a connection is closed, or nobody answers in time
            group: Any = args[0]
            raise ProcessLost(group.whom(error)) from error

    return told


@dataclass(frozen=True)
class Group:
    """Processes that call the same methods of it in the same order, each with its own values.

    A group of one calls nobody: every method returns what it is given.

    Attributes:
        rank: of this process; the first, 0, decides and writes.
        world: how many there are.
        part: of the samples of the batch that they share, which this process has; 1 where they share none.
        whom: says in words who is gone, given what a collective raised.
        channel: of torch.distributed, for what is on its way while others of these methods are called; None where
            all processes call everything in one order.
        neighbours: connections for small tensors; None where the processes are on several machines.
    """

    rank: int = 0
    world: int = 1
    part: float = 1.0
    whom: Callable[[Exception], str] = _nobody
    channel: Any = None
    neighbours: Neighbours | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @_may_lose
    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, of tensors of one shape; the same bits everywhere."""
        if self.world == 1:
            return tensor
        if near := self._near(tensor):
            return functools.reduce(torch.add, near)
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @_may_lose
    def table(self, own: Tensor) -> Tensor:
        """The tensors [...] of all processes, of one shape, as [world, ...] in the order of their ranks."""
        if self.world == 1:
            return own[None]
        near = self._near(own)
        if near is None:
            near = [torch.empty_like(own) for _ in range(self.world)]
            dist.all_gather(near, own.detach())
        return torch.stack(near)

    def _near(self, tensor: Tensor) -> list[Tensor] | None:
        """The tensors of all processes where these are on one machine and the tensors small; else None."""
        if self.neighbours is None or not self.neighbours.takes(tensor):
            return None
        return self.neighbours.gathered(tensor)

    @_may_lose
    def extremes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest of the lows and the largest of the highs of all processes."""
        if self.world == 1:
            return low, high
        both = torch.stack([-low, high])
        if near := self._near(both):
            both = functools.reduce(torch.maximum, near)
        else:
            dist.all_reduce(both, dist.ReduceOp.MAX)
        return -both[0], both[1]

    @_may_lose
    def gathered(self, value: _T) -> list[_T]:
        """What every process gives, in the order of their ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, while the others wait."""
        made = [make() if self.leads else None]
        return self._of_first(made)

    @_may_lose
    def _of_first(self, made: list[Any]) -> Any:
        if self.world > 1:
            dist.broadcast_object_list(made, src=0)
        return made[0]

    def copy_first(self, modules: Iterable[nn.Module]) -> None:
        """Give all modules the parameters and buffers that they have in the first process.

        Raises:
            ValueError: these are of other shapes in another process.
        """
        if self.world == 1:
            return
        tensors = list(dict.fromkeys(t for module in modules for t in _tensors(module)))
        shapes = self.gathered([(list(tensor.shape), str(tensor.dtype)) for tensor in tensors])
        if any(each != shapes[0] for each in shapes):
            raise ValueError(
                "the processes of this run have made models of different shapes of the same configuration"
            )
        self._copy_first(tensors)

    @_may_lose
    def _copy_first(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

    def turns(self, items: Iterable[_T]) -> Iterator[_T]:
        """Every world-th item, from that of this process on."""
        return (item for number, item in enumerate(items) if number % self.world == self.rank)

    def rounds(self, items: Iterable[_T], *, even: bool) -> Iterator[tuple[_T, bool]]:
        """`turns`, and that they are; by `even` each process has as many.

        One that has none left for the last round takes the last item too, which is not its own.
        """
        last: list[_T] = []
        count = 0
        for count, item in enumerate(items, 1):
            last = [item]
            if (count - 1) % self.world == self.rank:
                yield item, True
        if even and 0 < count % self.world <= self.rank:
            yield last[0], False

    def in_order(self, own: Sequence[_T]) -> list[_T]:
        """What all processes made of their `turns`, in the order of the items."""
        if self.world == 1:
            return list(own)
        parts: Any = self.gathered([each.cpu() if isinstance(each, Tensor) else each for each in own])
        return [parts[i % self.world][i // self.world] for i in range(sum(map(len, parts)))]

    def rows(self, tensor: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, one after the other, [N, ...]; differentiable.

        Every process is to compute the same of them, and to take 1 / world of it as its own: summed over processes,
        the gradients are then those of the whole.
        """
        return tensor if self.world == 1 else _Rows.apply(tensor, self)  # pyright: ignore[reportReturnType]

    def _all_rows(self, tensor: Tensor) -> tuple[Tensor, list[int]]:
        sizes = self.table(torch.tensor(len(tensor), device=tensor.device)).tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(self.table(padded), sizes, strict=True)
        return torch.cat([part[:size] for part, size in parts]), sizes

    def shares(self, counts: Tensor) -> Tensor:
        """Of counts [n], what part this process has of the sum over all; 0 of nothing."""
        return torch.ones_like(counts) if self.world == 1 else counts / self.sum(counts).clamp_min(1e-30)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        as_numbers = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
        rows, sizes = group._all_rows(as_numbers.detach())
        ctx.world, start = group.world, sum(sizes[: group.rank])
        ctx.own = slice(start, start + sizes[group.rank])
        return rows.to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad[ctx.own] * ctx.world, None  # the sum of what all have, which are alike


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


ALONE = Group()
_active: ContextVar[Group] = ContextVar("active", default=ALONE)
_of_batch: ContextVar[Group] = ContextVar("of_batch", default=ALONE)


def active() -> Group:
    """The processes that do the same as this one now."""
    return _active.get()


def of_batch() -> Group:
    """The processes that have a share each of the training batch that is being computed; else this one alone."""
    return _of_batch.get()


@contextmanager
def together(group: Group) -> Iterator[Group]:
    """Within, the processes of `group` do the same."""
    token = _active.set(group)
    try:
        yield group
    finally:
        _active.reset(token)


def alone() -> Any:
    """A context within which this process does what no other does."""
    return together(ALONE)


@contextmanager
def spread(own: int, together: int) -> Iterator[None]:
    """Within, a training batch is computed of whose samples this process has so many, and all together."""
    token = _of_batch.set(replace(active(), part=own / together) if own < together else ALONE)
    try:
        yield
    finally:
        _of_batch.reset(token)
