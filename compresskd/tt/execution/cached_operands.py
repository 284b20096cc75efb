"""What a layer keeps between calls at inference: merged groups, or the folded dense weight, and the plans.

It answers for the present values of its sources, the cores, whoever changed them and by whichever way:

- every source is held through an alias of its memory, so nothing else can come to lie at its address, and a source
  that was replaced, moved, cast or viewed anew is seen to be another (`Tensor.is_set_to`);
- an operand that is a view of a source reads its present values by itself;
- for an operand that is a copy, the sources are compared with what they were, bit for bit.

Version counters would be cheaper to ask but say nothing of fused optimizers, `.data`, numpy or a second process.
Who knows that nobody changes weights for a while says so by `constant_weights`, and nothing is compared meanwhile.
Only sources that lie in one piece in the CPU's memory are kept of: to ask another device would wait for it.

Nothing here is a parameter or a buffer; it is dropped with `clear`, on pickling and on copying. Each entry holds all
that it needs and is never changed, so that threads may share the layer.
"""

import ctypes
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

MAX_RUNS = 64
CONSTANT = " constant weights"  # of the names of choices that were measured where nothing is compared

_promise: ContextVar[object | None] = ContextVar("compresskd_constant_weights", default=None)
promised = _promise.get  # None where nobody has; bound once: it is asked at each call of a layer


@contextmanager
def constant_weights() -> Iterator[None]:
    """Within, by the caller's word, nobody changes or replaces a weight of a factorized layer.

    A layer whose weight was folded, or whose cores were merged, compares these with what they were at each call
    without gradients; within, only at the first. A weight that is changed all the same may have no effect before the
    block ends. It holds for this thread (and asyncio task) alone, as context variables do; a block within a block
    adds nothing.
    """
    token = _promise.set(promised() or object())
    try:
        yield
    finally:
        _promise.reset(token)


class Derived:
    """Something that was made of `sources`, and what tells whether it still holds.

    Args:
        sources: as they are now.
        copied: which of them, by position, the content holds copied values of, rather than views.
        make: the content; called after copies for comparison were taken, so that a change in between is seen.
    """

    __slots__ = ("_aliases", "_checks", "_held_under", "content")

    def __init__(self, sources: Sequence[Tensor], copied: Collection[int], make: Callable[[], Any]) -> None:
        self._aliases = [source.detach() for source in sources]
        self._checks = [_check(alias, k in copied) for k, alias in enumerate(self._aliases)]
        self._held_under = promised()  # the promise under which it was made, or last found to hold
        self.content = make()

    def holds(self, sources: Sequence[Tensor]) -> bool:
        """Whether the sources lie where they lay, and say what they said where that matters."""
        promise = promised()
        if promise is not None and self._held_under is promise:
            return True
        if len(sources) != len(self._checks):
            return False
        for source, (alias, dtype, place, values, memory) in zip(sources, self._checks, strict=False):
            if not source.is_set_to(alias) or source.dtype is not dtype:
                return False
            # a storage that was resized lies elsewhere
            if values is not None and (source.data_ptr() != place or values != memory):
                return False
        self._held_under = promise
        return True

    def carrying(self, content: Any) -> "Derived":
        """Something made of the content, which holds as long as this does."""
        other = Derived((), (), lambda: content)
        other._aliases, other._checks = self._aliases, self._checks
        return other

    @property
    def num_bytes(self) -> int:
        """Memory held beyond the sources."""
        known = {alias.untyped_storage().data_ptr() for alias in self._aliases}
        held = {t.untyped_storage().data_ptr(): t for t in _tensors(self.content)}
        compared = sum(len(values) for _, _, _, values, _ in self._checks if values is not None)
        return compared + sum(tensor.nbytes for place, tensor in held.items() if place not in known)


def _check(alias: Tensor, copied: bool) -> tuple[Any, ...]:
    """The alias, its dtype and address, and where its values were copied these, as bytes, beside its memory.

    Python compares a bytearray with memory as fast as C does, at a tenth of what calling an operation takes.
    """
    if not copied:
        return alias, alias.dtype, 0, None, None
    # not by numpy, which would forbid for good that the storage is resized, as sharding does
    memory = memoryview((ctypes.c_ubyte * alias.nbytes).from_address(alias.data_ptr()))
    return alias, alias.dtype, alias.data_ptr(), bytearray(memory), memory


class Prepared:
    """What was derived from a layer's sources: operands, and the runs that compute an output by them."""

    def __init__(self) -> None:
        self.runs: dict[Any, Derived] = {}
        self._operands: dict[Any, Derived] = {}

    def run(self, name: Any, sources: Sequence[Tensor], make: Callable[[], Derived]) -> Any:
        """The content of the run under `name`; `make` is asked where there is none, or none that holds."""
        found = self.runs.get(name)
        if found is None or not found.holds(sources):
            if found is not None or len(self.runs) >= MAX_RUNS:
                self.clear()
            # A tensor made in inference mode could not be used by a later call outside of it.
            with torch.inference_mode(False), torch.no_grad():
                found = self.runs[name] = make()
        return found.content

    def operands(
        self, name: Any, sources: Sequence[Tensor], copied: Collection[int], make: Callable[[], Any]
    ) -> Derived:
        """The operands under `name`, made where there are none that hold; several runs share them."""
        found = self._operands.get(name)
        if found is None or not found.holds(sources):
            with torch.inference_mode(False), torch.no_grad():
                found = self._operands[name] = Derived(sources, copied, make)
        return found

    def clear(self) -> None:
        """Forget everything."""
        self.runs, self._operands = {}, {}

    @property
    def num_bytes(self) -> int:
        """Memory held beyond the parameters."""
        return sum(entry.num_bytes for entry in list(self._operands.values()))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prepared":
        return Prepared()

    def __reduce__(self) -> tuple[type["Prepared"], tuple[()]]:
        return Prepared, ()


def can_keep(sources: Sequence[Tensor]) -> bool:
    """Whether anything may be kept that was made of these."""
    return all(source.device.type == "cpu" and source.is_contiguous() for source in sources)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    try:
        return [tensor for value in values for tensor in _tensors(value)]
    except TypeError:
        return []
