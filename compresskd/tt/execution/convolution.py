"""How a chain of convolution stages runs, and whether it is faster than the folded kernel."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.decompose.modes import Pair
from compresskd.tt.execution.eager import undisturbed
from compresskd.tt.execution.plan_cache import decide

ROUNDS = 5
MARGIN = 0.95

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, padding, dilation and padding mode as nn.Conv2d normalises them.

    `pads` is what F.pad takes (left, right, top, bottom) to do the whole padding up front.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair | str
    dilation: Pair
    padding_mode: str
    pads: tuple[int, ...]

    @classmethod
    def of(
        cls,
        stages: Sequence[Pair],
        stride: int | Pair,
        padding: int | Pair | str,
        dilation: int | Pair,
        padding_mode: str,
    ) -> "Geometry":
        """The geometry of stages whose kernels combine to one kernel: each axis in one stage, rows first.

        Raises:
            ValueError: two stages share an axis, or the columns come before the rows.
        """
        holders = [[k for k, kernel in enumerate(stages) if kernel[axis] > 1] for axis in (0, 1)]
        rows, columns = holders
        if not stages or len(rows) > 1 or len(columns) > 1 or (rows and columns and rows[0] > columns[0]):
            raise ValueError(
                "expected stages such as ((1, 1), (3, 3), (1, 1)) or ((3, 1), (1, 3)): each axis of the kernel in "
                f"one stage, rows not after columns; got {tuple(stages)}"
            )
        kernel_size = (math.prod(a for a, _ in stages), math.prod(b for _, b in stages))
        # nn.Conv2d checks and normalises the options; on the meta device it costs nothing.
        like = nn.Conv2d(
            1,
            1,
            kernel_size,
            stride,
            padding,
            dilation,
            padding_mode=padding_mode,  # pyright: ignore[reportArgumentType]
            device="meta",
        )
        return cls(
            kernel_size,
            like.stride,  # pyright: ignore[reportArgumentType]
            like.padding,  # pyright: ignore[reportArgumentType]
            like.dilation,  # pyright: ignore[reportArgumentType]
            padding_mode,
            tuple(like._reversed_padding_repeated_twice),
        )

    @property
    def native(self) -> bool:
        """Whether the stages' own zero padding does it all: symmetric, and only where a kernel is wider than 1."""
        left, right, top, bottom = self.pads
        inside = all(size > 1 or pad == 0 for size, pad in zip(self.kernel_size, (top, left), strict=True))
        return self.padding_mode == "zeros" and left == right and top == bottom and inside


@dataclass(frozen=True)
class StageOptions:
    """Stride, padding and dilation of one stage."""

    stride: Pair
    padding: Pair
    dilation: Pair


def stage_options(stages: Sequence[Pair], geometry: Geometry) -> tuple[StageOptions, ...]:
    """Each axis's stride, padding and dilation go to the stage that holds its kernel, else to the first."""
    pads = (geometry.pads[2], geometry.pads[0]) if geometry.native else (0, 0)
    options = []
    for k in range(len(stages)):
        stride, padding, dilation = [1, 1], [0, 0], [1, 1]
        for axis in (0, 1):
            holders = [j for j, kernel in enumerate(stages) if kernel[axis] > 1]
            if k == (holders[0] if holders else 0):
                stride[axis], padding[axis] = geometry.stride[axis], pads[axis]
                dilation[axis] = geometry.dilation[axis]
        options.append(
            StageOptions((stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))
        )
    return tuple(options)


def run_stages(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    options: Sequence[StageOptions],
    geometry: Geometry,
) -> Tensor:
    """x [B, I, H, W] through the stages' kernels [out, in, a, b]; differentiable."""
    if not geometry.native:
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, geometry.pads, mode=mode)
    last = len(weights) - 1
    for k, (weight, stage) in enumerate(zip(weights, options, strict=True)):
        x = F.conv2d(x, weight, bias if k == last else None, stage.stride, stage.padding, stage.dilation)
    return x


def chain_macs(
    cores: Sequence[Tensor],
    stages: Sequence[Pair],
    options: Sequence[StageOptions],
    geometry: Geometry,
    x: Tensor,
) -> tuple[int, int]:
    """Multiply-accumulates of the chain and of the dense convolution, for one image of this size."""
    at, chain = [x.shape[-2], x.shape[-1]], 0
    if not geometry.native:  # all of the padding comes first
        at = [at[0] + sum(geometry.pads[2:]), at[1] + sum(geometry.pads[:2])]
    for core, (a, b), stage in zip(cores, stages, options, strict=True):
        for axis, kernel in enumerate((a, b)):
            reach = stage.dilation[axis] * (kernel - 1) + 1
            padded = at[axis] + 2 * stage.padding[axis]
            at[axis] = max(0, (padded - reach) // stage.stride[axis] + 1)
        chain += core.numel() * at[0] * at[1]
    dense = math.prod(core.shape[2] for core in cores) * cores[-1].shape[1] * at[0] * at[1]
    return chain, dense


def chain_is_faster(x: Tensor, runs: Callable[[], tuple[Run, Run]], name: str) -> bool:
    """Measured on this input: interleaved runs, the least of each; the outcome is remembered on disk under `name`.

    `runs` makes the chain and the folded convolution, in this order, where they have to be measured.
    """
    place = (
        *x.shape,
        x.dtype,
        x.device.type,
        x.stride()[-3] == 1,
        torch.get_num_threads(),
        torch.__version__,
    )
    return decide("convolution", f"{name} {place}", lambda: _measure(x, *runs()), False)


def _measure(x: Tensor, chain: Run, folded: Run) -> bool:
    least = [math.inf, math.inf]
    with undisturbed(grad=False):
        for i, run in list(enumerate((chain, folded))) * (ROUNDS + 1):
            start = time.perf_counter()
            run(x)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            least[i] = min(least[i], time.perf_counter() - start)
    return least[0] < MARGIN * least[1]
