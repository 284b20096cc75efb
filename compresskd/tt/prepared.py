"""What a layer keeps between calls at inference: merged groups, or the folded dense weight, and the plans.

Nothing here is a parameter or a buffer: it is rebuilt when a core's version counter, storage or dtype changes, and
it is dropped with `clear`, on pickling and on copying.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Prepared:
    """Derived tensors by name, valid as long as the sources are unchanged."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._held: dict[Any, Any] = {}

    def get(self, sources: Sequence[Tensor], name: Any) -> Any:
        """The value under `name`, or None where there is none or a source has changed since."""
        key = version_key(sources)
        if key != self._key:
            self._held.clear()
            self._key = key
            return None
        return self._held.get(name)

    def peek(self, name: Any) -> Any:
        """The value under `name`, or None, where `get` has just looked at the sources."""
        return self._held.get(name)

    def put(self, name: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make the value and keep it under `name` until a source changes."""
        # A tensor made in inference mode could not be used by a later call outside of it.
        with torch.inference_mode(False), torch.no_grad():
            held = self._held[name] = make(*arguments)
        return held

    def clear(self) -> None:
        """Forget everything."""
        self._key = ()
        self._held.clear()

    @property
    def num_bytes(self) -> int:
        """Memory held beyond the parameters."""
        return sum(t.numel() * t.element_size() for t in _tensors(self._held.values()))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prepared":
        return Prepared()

    def __reduce__(self) -> tuple[type["Prepared"], tuple[()]]:
        return Prepared, ()


def version_key(sources: Sequence[Tensor]) -> tuple[Any, ...]:
    """Changes with every in-place update that autograd sees, and with every replaced storage."""
    try:
        return tuple([(s._version, s.data_ptr()) for s in sources])
    except RuntimeError:
        # Inference tensors count no versions: nothing may be kept for them.
        return (object(),)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    try:
        return [tensor for value in values for tensor in _tensors(value)]
    except TypeError:
        return []
