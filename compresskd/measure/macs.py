"""Multiply-accumulates of a forward pass, counted operator by operator, or 'unknown' with the reason."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mha, mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from compresskd.layers import surgery
from compresskd.measure.operators import formula_of, is_free
from compresskd.tasks import Inputs, call
from compresskd.training.evaluation import evaluation_mode


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        number: how many; None where that is not known.
        unknown: why, where it is not: nothing is left out silently.
    """

    number: int | None
    unknown: str | None = None


def count(model: nn.Module, example: Inputs) -> Macs:
    """Multiply-accumulates of one forward pass over one sample, in evaluation mode.

    Args:
        model: counted as it is called; see below for factorized layers.
        example: [1, ...] one input.

    Matrix products, convolutions, attention, bilinear forms and recurrent cells are counted, each by its formula;
    element-wise work, sums, look-ups and copies are not. An operator that may multiply matrices and has no formula here
    (a custom kernel, a Fourier transform) makes the number unknown. What is computed outside of PyTorch is not seen.

    A compressed layer with a method `macs(input)` says its number itself: a tensor train that of its least contraction
    or of its dense weight, whichever is less. Which of its plans is run is a matter of time and differs between
    machines; this number does not.
    """
    counter = _Counter()
    with evaluation_mode(model), torch.no_grad():
        call(model, example)  # a first call may fold and cache; what counts is the steady state
        try:
            with _one_operator_a_product(), _own_numbers(model, counter), counter:
                call(model, example)
        except Exception as error:  # it ran a moment ago: the counting is to blame
            return Macs(None, f"the forward pass cannot be watched ({type(error).__name__}: {error})")
    if counter.unknown:
        return Macs(None, f"no formula for {', '.join(sorted(counter.unknown))}")
    return Macs(counter.total)


class _Counter(TorchDispatchMode):
    """Sums up what each operator costs that is called inside."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total, self.silent = 0, 0
        self.unknown: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it would load torch's compiler, which takes a second and more

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self._note(str(func))
            return func(*args, **kwargs)
        formula = formula_of(func)
        if formula is None and not is_free(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self._note(f"{func._schema.name}")
        out = func(*args, **kwargs)
        if formula is not None and not self.silent:
            self.total += formula(*args, **{**kwargs, "out": out})
        return out

    def _note(self, name: str) -> None:
        if not self.silent:
            self.unknown.add(name)


@contextlib.contextmanager
def _one_operator_a_product() -> Iterator[None]:
    """No fused kernels inside, which hide what they multiply, and no compiled graphs."""
    fast = mha.get_fastpath_enabled()
    onednn, deep = mkldnn.set_flags(False), cudnn.set_flags(False)
    mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        mha.set_fastpath_enabled(fast)
        mkldnn.set_flags(onednn[0])
        cudnn.set_flags(deep[0])


@contextlib.contextmanager
def _own_numbers(model: nn.Module, counter: _Counter) -> Iterator[None]:
    """Layers that say their number themselves count by it; nothing inside them counts."""

    def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not counter.silent:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            counter.total += layer.macs(x)
        counter.silent += 1

    def leave(*_: Any) -> None:
        counter.silent -= 1

    handles = []
    try:
        for layer in model.modules():
            if isinstance(layer, surgery.Structured) and hasattr(layer, "macs"):
                handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                handles.append(layer.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
