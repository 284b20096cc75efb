"""What a layer keeps between calls at inference: merged groups, or the folded dense weight, and the plans.

Nothing here is a parameter or a buffer: it is rebuilt when a core's version counter, storage or dtype changes, and
it is dropped with `clear`, on pickling and on copying.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_RUNS = 64


class Prepared:
    """Derived tensors and closures by name, valid as long as the sources are unchanged.

    `runs` holds what computes an output, by (key of the sources, shape, dtype, threads): one look-up at a call.
    """

    def __init__(self) -> None:
        self.runs: dict[Any, Callable[[Tensor], Tensor]] = {}
        self._key: int | None = None
        self._held: dict[Any, Any] = {}

    def refresh(self, sources: Sequence[Tensor]) -> int | None:
        """Forget everything where a source has changed since; the key of the sources, None if they have none."""
        try:
            key: int | None = source_key(sources)
        except RuntimeError:
            # Inference tensors count no versions: nothing may be kept for them.
            key = None
        if key is None or key != self._key or len(self.runs) >= MAX_RUNS:
            self.clear()
            self._key = key
        return key

    def get(self, sources: Sequence[Tensor], name: Any) -> Any:
        """The value under `name`, or None where there is none or a source has changed since."""
        self.refresh(sources)
        return self._held.get(name)

    def peek(self, name: Any) -> Any:
        """The value under `name`, or None, where the sources have just been looked at."""
        return self._held.get(name)

    def put(self, name: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Make the value and keep it under `name` until a source changes."""
        # A tensor made in inference mode could not be used by a later call outside of it.
        with torch.inference_mode(False), torch.no_grad():
            held = self._held[name] = make(*arguments)
        return held

    def clear(self) -> None:
        """Forget everything."""
        self._key = None
        self._held.clear()
        self.runs.clear()

    @property
    def num_bytes(self) -> int:
        """Memory held beyond the parameters; what several entries share counts once."""
        tensors = {t.data_ptr(): t for t in _tensors(self._held.values())}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prepared":
        return Prepared()

    def __reduce__(self) -> tuple[type["Prepared"], tuple[()]]:
        return Prepared, ()


def source_key(sources: Iterable[Tensor]) -> int:
    """Changes with every in-place update that autograd sees, and with every replaced storage."""
    key = 0
    for source in sources:
        key = 3 * key + (source._version << 50) + source.data_ptr()
    return key


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    try:
        return [tensor for value in values for tensor in _tensors(value)]
    except TypeError:
        return []
