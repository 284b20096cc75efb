"""How a convolution of stages is computed: as a chain or by the folded kernel, by convolutions or by products."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskd.tt.decompose.modes import Pair
from compresskd.tt.execution.eager import least_seconds, undisturbed
from compresskd.tt.execution.memory import keep_freed_memory
from compresskd.tt.execution.plan_cache import decide

TRIAL_SECONDS = 0.1
LEAST_ROUNDS, MOST_ROUNDS = 1, 20
EQUAL = 1.05

Step = Callable[[Tensor, Tensor | None, bool | None], Tensor]


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


@dataclass(frozen=True)
class Way:
    """How a layer is computed at inference.

    Attributes:
        folded: by the one kernel that the stages make, in place of the stages one after the other.
        products: a kernel of one pixel as a matrix product, in place of a convolution.
    """

    folded: bool
    products: bool = False

    def __str__(self) -> str:
        return ("folded" if self.folded else "chain") + (", by products" if self.products else "")


def ways(products: Sequence[bool], macs: float) -> list[Way]:
    """Those that may be the fastest at inference; of ways that are as fast the first is taken, which keeps least.

    Args:
        products: which stages multiply pixels by matrices.
        macs: multiplications of the chain over those of the folded kernel.
    """
    found = [Way(False, True)] if any(products) and macs < 1.0 else []
    found += [Way(False)] if macs < 1.0 else []
    found += [Way(True, True)] if all(products) else []
    return [*found, Way(True)]


def is_product(kernel: Pair, stage: StageOptions) -> bool:
    """Whether a stage multiplies each pixel by a matrix, and does nothing else."""
    return kernel == stage.stride == (1, 1) and stage.padding == (0, 0)


def run_stages(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    options: Sequence[StageOptions],
    geometry: Geometry,
) -> Tensor:
    """x [B, I, H, W] through the stages' kernels [out, in, a, b]; differentiable."""
    return stages_run(weights, options, geometry)(x, bias)


def stages_run(
    weights: Sequence[Tensor], options: Sequence[StageOptions], geometry: Geometry
) -> Callable[..., Tensor]:
    """What takes x [B, I, H, W] and a bias through the stages' kernels [out, in, a, b] or matrices [in, out]."""
    steps: list[Step] = []
    pending: list[Tensor] = []
    for weight, stage in zip(weights, options, strict=True):
        if weight.dim() == 2:
            pending.append(weight)
            continue
        steps += [_product(pending)] if pending else []
        steps.append(_convolution(weight, stage))
        pending = []
    *first, last = [*steps, _product(pending)] if pending else steps
    multiplies = any(weight.dim() == 2 for weight in weights)  # else nobody asks how x lies
    if geometry.native and not first:
        return lambda x, bias=None: last(x, bias, None)

    def run(x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not geometry.native:
            mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
            x = F.pad(x, geometry.pads, mode=mode)
        rows = multiplies and is_in_rows(x)
        for step in first:
            x = step(x, None, rows)
        return last(x, bias, rows)

    return run


def is_in_rows(x: Tensor) -> bool:
    """Whether the channels of a pixel of x [B, C, H, W] lie side by side."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _convolution(weight: Tensor, stage: StageOptions) -> Step:
    stride, padding, dilation = stage.stride, stage.padding, stage.dilation
    return lambda x, bias, _: F.conv2d(x, weight, bias, stride, padding, dilation)


def _product(matrices: Sequence[Tensor]) -> Step:
    """x [B, C, H, W] times matrices [in, out], one after the other, at each pixel.

    The output lies in rows or in planes as the input of the layer does; None asks x.
    """
    *first, last = matrices

    def run(x: Tensor, bias: Tensor | None, rows: bool | None) -> Tensor:
        B, C, H, W = x.shape
        M, one = last.shape[1], H == W == 1
        if one or (is_in_rows(x) if rows is None else rows):
            y = x.reshape(B, C) if one else x.permute(0, 2, 3, 1).reshape(-1, C)
            for matrix in first:
                y = torch.mm(y, matrix)
            y = torch.mm(y, last) if bias is None else torch.addmm(bias, y, last)
            return y.view(B, M, 1, 1) if one else y.view(B, H, W, M).permute(0, 3, 1, 2)
        y = x.reshape(B, C, H * W)
        for matrix in first:
            y = torch.bmm(matrix.t().expand(B, -1, -1), y)
        batch = last.t().expand(B, -1, -1)
        y = torch.bmm(batch, y) if bias is None else torch.baddbmm(bias.unsqueeze(1), batch, y)
        return y.view(B, M, H, W)

    return run


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


def fastest(
    x: Tensor, runs: Callable[[], Mapping[Way, Callable[[], object]]], name: str, otherwise: Way
) -> Way:
    """The way that took least on this input; of those as good as equal the first. It is kept on disk under `name`.

    `runs` makes the ways to compute it, where they have to be measured.
    """
    keep_freed_memory()
    place = (*x.shape, x.dtype, x.device.type, is_in_rows(x), torch.get_num_threads(), torch.__version__)
    found = decide(
        "convolution", f"v3 {name} {place}", lambda: asdict(_measured(runs(), x.device)), asdict(otherwise)
    )
    return Way(**found)


def _measured(runs: Mapping[Way, Callable[[], object]], device: torch.device) -> Way:
    with undisturbed(grad=False):
        once = least_seconds(list(runs.values()), device, 0)
        rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(TRIAL_SECONDS / sum(once))))
        least = dict(zip(runs, least_seconds(list(runs.values()), device, rounds), strict=True))
    return next(way for way, seconds in least.items() if seconds <= EQUAL * min(least.values()))
