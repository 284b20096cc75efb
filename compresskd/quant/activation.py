"""Fake quantization of activations: 8 bits, one scale for the tensor, observed or learned."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from compresskd.distributed import of_batch
from compresskd.options import OptionError
from compresskd.quant.estimators import LearnedStep, Rounding, StraightThrough
from compresskd.quant.granularity import PerTensor
from compresskd.quant.grid import Grid
from compresskd.quant.scale import to_float16
from compresskd.tasks import Inputs, call

_GRID = Grid(8, "affine")
CHILD = "input_quant"  # the name under which a module holds the ActivationQuant of its input


class ActivationQuant(nn.Module):
    """Round activations [...] to 8 bits, affine, at one float16 scale and one zero point for the tensor.

    The range is a moving average of minimum and maximum over training passes, which the first pass starts.
    With `lsq` the scale is then learned (LSQ, arXiv:1902.08153), and observing ends by itself after
    `num_observed` passes, where a frozen or straight-through range ends at `freeze`.

    Args:
        estimator: `straight_through` or `lsq`.
        momentum: share of the past in the moving average.
        num_observed: training passes after which a learned scale is no longer observed.

    Raises:
        RuntimeError: in the forward pass, if it is evaluated before any range was observed.
    """

    def __init__(
        self, *, estimator: str = "straight_through", momentum: float = 0.95, num_observed: int = 20
    ) -> None:
        super().__init__()
        if estimator not in ("straight_through", "lsq"):
            raise OptionError("estimator", estimator, "lsq, straight_through")
        self.estimator, self.momentum, self.num_observed = estimator, momentum, num_observed
        self.enabled, self.frozen, self.num_passes = True, False, 0
        self.low: Tensor
        self.high: Tensor
        self.zero_point: Tensor
        self.log_scale: Tensor
        if estimator == "lsq":
            self.log_scale = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("log_scale", torch.zeros(1))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int8))
        self._mark()

    def forward(self, x: Tensor) -> Tensor:
        """The activations as 8-bit integers would carry them, in the dtype of x."""
        if not self.enabled:
            return x
        observing = self.training and not self.frozen
        learned = self.estimator == "lsq"
        if observing and not (learned and self.num_passes >= self.num_observed):
            self._observe(x.detach().float())
        if self.num_passes == 0:
            raise RuntimeError(
                "activations cannot be quantized before their range was observed: run a few batches in training "
                "mode first, or call calibrate(model, inputs)"
            )
        rounding = Rounding(self.scale, self.zero_point, _GRID, PerTensor())
        if not torch.is_grad_enabled():
            return rounding.against(x).round(x)
        if learned and observing and self.num_passes >= self.num_observed:
            return cast(Tensor, LearnedStep.apply(x, self.log_scale, rounding, of_batch()))
        return cast(Tensor, StraightThrough.apply(x, rounding))

    @property
    def scale(self) -> Tensor:
        """[1] float16, as stored."""
        return to_float16(self.log_scale.detach().float().exp())

    def freeze(self) -> None:
        """Keep the range as it is from now on."""
        self.frozen = True

    def get_extra_state(self) -> Tensor:
        """`enabled`, `frozen` and the number of passes seen, as a tensor."""
        return torch.tensor([self.enabled, self.frozen, self.num_passes], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        enabled, frozen, self.num_passes = state.tolist()
        self.enabled, self.frozen = bool(enabled), bool(frozen)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _mark(self) -> None:
        self.log_scale.no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = of_batch().extremes(*torch.aminmax(x))
        past = self.momentum if self.num_passes else 0.0
        self.low.lerp_(low.clamp(max=0).reshape(1), 1 - past)
        self.high.lerp_(high.clamp(min=0).reshape(1), 1 - past)
        scale = to_float16((self.high - self.low) / (_GRID.high - _GRID.low)).float()
        self.log_scale.copy_(scale.log())
        zero_point = (_GRID.low - torch.round(self.low / scale)).clamp(_GRID.low, _GRID.high)
        self.zero_point.copy_(zero_point.to(torch.int8))
        self.num_passes += 1


def quantize_input(module: nn.Module, activation: ActivationQuant) -> None:
    """Round the first argument of `module` by `activation`, which becomes its child `input_quant`.

    Integer inputs (the indices of an embedding) pass as they are: there is nothing to round.
    """
    module.add_module(CHILD, activation)
    module.register_forward_pre_hook(_round_input)


def calibrate(module: nn.Module, inputs: Iterable[Inputs]) -> list[str]:
    """Observe the ranges of all activations on batches of inputs; parameters and batch-norm statistics stay.

    Returns:
        Names of layers that are never called, since another module reads their weights (nn.MultiheadAttention those of
        `out_proj`): nothing rounds what they multiply, so their rounding is taken off.
    """
    observers = [m for m in module.modules() if isinstance(m, ActivationQuant)]
    modes = {m: m.training for m in module.modules()}
    module.eval()
    for observer in observers:
        observer.train()
    with torch.no_grad():
        for batch in inputs:
            call(module, batch)
    for m, mode in modes.items():
        m.training = mode
    return [name for name, layer in module.named_modules() if _taken_off(layer)]


def _taken_off(layer: nn.Module) -> bool:
    """Take the rounding of inputs off a layer that was never called; whether it was."""
    quant = layer._modules.get(CHILD)
    if not isinstance(quant, ActivationQuant) or quant.num_passes or hasattr(layer, "num_embeddings"):
        return False
    del layer._modules[CHILD]
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _round_input]:
        del layer._forward_pre_hooks[key]
    return True


def _round_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    # takes the child from the module it is called for: a deep copy then rounds by its own child
    if not args[0].is_floating_point():
        return args
    return (getattr(module, CHILD)(args[0]), *args[1:])
