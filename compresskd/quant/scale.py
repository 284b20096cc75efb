"""Scales and zero points from the weights themselves: by their range, or by the least squared error.

All return (scale [S] float16, zero_point [S] int8 or None).
"""

import torch
from torch import Tensor

from compresskd.options import OptionError
from compresskd.quant.granularity import Granularity, PerChannel, PerGroup
from compresskd.quant.grid import Grid, fake_quantize, read_from_grid, round_to_grid, spread

METHODS = ("mse", "absmax")
_SMALLEST, _LARGEST = 2.0**-24, 65504.0  # of float16, in which scales are stored
_SHRINK = 0.87  # between candidates of the search
_NUM_CANDIDATES = 25  # down to 3% of the absolute-maximum scale: heavy tails have their optimum far below it
_NUM_REFINEMENTS = 5
_AT_ONCE = 2**16  # numbers


def find_scale(
    w: Tensor, grid: Grid, granularity: Granularity, method: str = "mse"
) -> tuple[Tensor, Tensor | None]:
    """`mse_scale` or `absmax_scale`, by name.

    Raises:
        ValueError: another name, or weights that are not finite.
    """
    if method not in METHODS:
        raise OptionError("initial_scale", method, ", ".join(METHODS))
    w = w.detach().float()
    if not torch.isfinite(w).all():
        raise ValueError(f"weights of shape {tuple(w.shape)} are not finite: there is no scale for them")
    return mse_scale(w, grid, granularity) if method == "mse" else absmax_scale(w, grid, granularity)


def to_float16(scale: Tensor) -> Tensor:
    """Scales as they are stored: float16, at least its smallest and at most its largest positive number."""
    return scale.clamp(_SMALLEST, _LARGEST).half()


def absmax_scale(w: Tensor, grid: Grid, granularity: Granularity) -> tuple[Tensor, Tensor | None]:
    """The scale at which the range of every block just fits: 2 max|w| / (high - low).

    Affine: (max - min) / (high - low), of a range that includes zero, so that zero is represented exactly.
    """
    return _scale_of_range(-granularity.amax(-w), granularity.amax(w), grid)


def mse_scale(w: Tensor, grid: Grid, granularity: Granularity) -> tuple[Tensor, Tensor | None]:
    """The scale of least squared rounding error of every block: clipped ranges are searched, then refined.

    Refinement alternates rounding with the closed form scale = <w, levels> / <levels, levels>. Errors are
    compared at the stored float16 scale.
    """
    rows = _rows(w, granularity)
    if rows is None:
        return _searched(w, grid, granularity)
    # a block needs no other: as many at once as a near cache holds, over which the search passes some hundred times
    at_once = max(1, _AT_ONCE // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    parts = rows.split(at_once)
    scales, zero_points = zip(*(_searched(part, grid, PerChannel()) for part in parts), strict=True)
    return torch.cat(scales), torch.cat(zero_points) if grid.has_zero_point else None


def _rows(w: Tensor, granularity: Granularity) -> Tensor | None:
    """[S, n], a row of its own for each scale; None where blocks do not lie so, or there are none."""
    if not w.numel() or w.dim() < 2:
        return None
    if isinstance(granularity, PerChannel):
        return w.flatten(1) if granularity.dim in (0, -w.dim()) else None
    if isinstance(granularity, PerGroup):
        return w.reshape(-1, granularity.size) if w.numel() % granularity.size == 0 else None
    return None


def _searched(w: Tensor, grid: Grid, granularity: Granularity) -> tuple[Tensor, Tensor | None]:
    low, high = -granularity.amax(-w), granularity.amax(w)
    scale, zero_point = _scale_of_range(low, high, grid)
    least, rounded = torch.full(scale.shape, torch.inf, device=w.device), torch.empty_like(w)
    for step in range(_NUM_CANDIDATES + _NUM_REFINEMENTS):
        if step < _NUM_CANDIDATES:
            new_scale, new_zero = _scale_of_range(low * _SHRINK**step, high * _SHRINK**step, grid)
        else:
            new_scale, new_zero = closed_form_scale(w, scale, zero_point, grid, granularity), zero_point
        fake_quantize(w, new_scale, new_zero, grid, granularity, out=rounded)
        errors = granularity.total(rounded.sub_(w).square_())
        wins = errors < least
        least, scale = torch.where(wins, errors, least), torch.where(wins, new_scale, scale)
        if zero_point is not None and new_zero is not None:
            zero_point = torch.where(wins, new_zero, zero_point)
    return scale, zero_point


def closed_form_scale(
    w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, granularity: Granularity
) -> Tensor:
    """Best float16 scale [S] for the integers that the present scale gives: <w, levels> / <levels, levels>.

    Where that is no positive number the present scale stays.
    """
    wide_scale, offset = spread(scale, zero_point, grid, granularity, w.shape)
    integers = round_to_grid(w, wide_scale, offset, grid)
    levels = read_from_grid(integers, torch.ones_like(wide_scale), offset, grid)
    ratio = granularity.total(w * levels) / granularity.total(levels * levels)
    return torch.where(torch.isfinite(ratio) & (ratio > 0), to_float16(ratio), scale.half())


def _scale_of_range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    steps = float(grid.high - grid.low)
    if not grid.has_zero_point:
        return to_float16(torch.maximum(-low, high) / (steps / 2)), None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = to_float16((high - low) / steps)
    zero_point = grid.low - torch.round(low / scale.float())
    return scale, zero_point.clamp(grid.low, grid.high).to(torch.int8)
