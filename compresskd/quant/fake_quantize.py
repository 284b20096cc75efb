"""Quantization-aware training of one tensor: `FakeQuant`, a parametrization that rounds a weight as it is read.

    torch.nn.utils.parametrize.register_parametrization(linear, "weight", FakeQuant(linear.weight, Grid(4)))

S is the number of scales. A training step should run inside `torch.nn.utils.parametrize.cached()`, so that
every weight is rounded once, however often it is read.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from compresskd.options import OptionError
from compresskd.quant.estimators import LearnedStep, Rounding, StraightThrough
from compresskd.quant.granularity import Granularity, PerTensor
from compresskd.quant.grid import Grid, quantize
from compresskd.quant.pack import QuantizedTensor
from compresskd.quant.scale import absmax_scale, closed_form_scale, find_scale, to_float16

ESTIMATORS = ("lsq", "straight_through")


class FakeQuant(nn.Module):
    """Round a weight to a grid in the forward pass, at the float16 scale that will be stored.

    `lsq` learns the logarithm of the scale (a parameter with `no_weight_decay = True`).
    `straight_through` takes the scale from the weights anew in every training pass, until `freeze`: the
    range's with initial_scale='absmax', else one step of the closed form toward the least squared error.

    Args:
        weight: of any shape; its values give the first scale.
        grid: the integers.
        granularity: which elements share a scale.
        estimator: `lsq` or `straight_through`.
        initial_scale: `mse` or `absmax`.
        start: scale, zero point, kind of grid and granularity to start from instead, such as `quantize_cores`
            found; its number of bits must be that of `grid`.

    Raises:
        ValueError: an unknown estimator or initial scale, weights that are not finite, or a granularity that
        does
            not fit them.
    """

    made = 0  # of this class: who remembers those of a model looks again where there are more

    def __init__(
        self,
        weight: Tensor,
        grid: Grid,
        granularity: Granularity | None = None,
        *,
        estimator: str = "lsq",
        initial_scale: str = "mse",
        start: QuantizedTensor | None = None,
    ) -> None:
        super().__init__()
        FakeQuant.made += 1
        if estimator not in ESTIMATORS:
            raise OptionError("estimator", estimator, ", ".join(ESTIMATORS))
        self.grid, self.granularity = grid, granularity or PerTensor()
        self.estimator, self.initial_scale = estimator, initial_scale
        self.enabled, self.frozen = True, False
        scale, zero_point = self._first_scale(weight, start)
        log_scale = scale.float().log().to(weight.device)
        self.log_scale: Tensor
        if estimator == "lsq":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.zero_point: Tensor | None
        self.register_buffer("zero_point", None if zero_point is None else zero_point.to(weight.device))
        self._mark()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it will be read back from its integers; as it is while disabled."""
        if not self.enabled:
            return weight
        if self.training and not self.frozen and self.estimator == "straight_through":
            self._observe(weight.detach().float())
        rounding = Rounding(self.scale, self.zero_point, self.grid, self.granularity)
        if not torch.is_grad_enabled():
            return rounding.against(weight).round(weight)
        if self.learns:
            rounded = LearnedStep.apply(weight, self.log_scale, rounding)
        else:
            rounded = StraightThrough.apply(weight, rounding)
        return cast(Tensor, rounded)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigned values become the float weights as they are."""
        return weight

    @property
    def scale(self) -> Tensor:
        """[S] float16, as stored; outside of the graph."""
        return to_float16(self.log_scale.detach().float().exp())

    @property
    def learns(self) -> bool:
        """Whether the scale has a gradient."""
        return self.enabled and not self.frozen and self.estimator == "lsq"

    def convert(self, weight: Tensor) -> QuantizedTensor:
        """The integers of the float weight; their values are exactly what `forward` returns."""
        integers = quantize(weight.detach(), self.scale, self.zero_point, self.grid, self.granularity)
        zero_point = None if self.zero_point is None else self.zero_point.clone()
        return QuantizedTensor(integers, self.scale, zero_point, self.grid, self.granularity)

    def freeze(self) -> None:
        """Keep scale and zero point as they are from now on, learned ones too."""
        self.frozen = True

    def get_extra_state(self) -> Tensor:
        """`enabled` and `frozen`, as a tensor so that any format of checkpoints can hold them."""
        return torch.tensor([self.enabled, self.frozen], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.enabled, self.frozen = (bool(value) for value in state.tolist())

    def extra_repr(self) -> str:
        """Grid, granularity, estimator."""
        return f"{self.grid}, {self.granularity}, {self.estimator}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _mark(self) -> None:
        # a copy of a parameter loses its attributes: deepcopy comes through __setstate__, which marks again
        self.log_scale.no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    def _first_scale(self, weight: Tensor, start: QuantizedTensor | None) -> tuple[Tensor, Tensor | None]:
        if start is None:
            return find_scale(weight, self.grid, self.granularity, self.initial_scale)
        if start.grid.bits != self.grid.bits or start.shape != weight.shape:
            raise ValueError(
                f"the start has {start.grid.bits} bits, but {self.grid.bits} are asked for; shapes "
                f"{tuple(start.shape)} and {tuple(weight.shape)}"
            )
        self.grid, self.granularity = start.grid, start.granularity
        return start.scale, start.zero_point

    @torch.no_grad()
    def _observe(self, weight: Tensor) -> None:
        if self.initial_scale == "absmax":
            scale, zero_point = absmax_scale(weight, self.grid, self.granularity)
            if self.zero_point is not None and zero_point is not None:
                self.zero_point.copy_(zero_point)
        else:
            scale = closed_form_scale(weight, self.scale, self.zero_point, self.grid, self.granularity)
        self.log_scale.copy_(scale.float().log())
