"""Inline SVG: accuracy against a cost with its Pareto front, and training curves.

Colours are classes (s0 ... s7), so that the page's style sheet decides them for light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from compresskd.compare.curves import Curve

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 14, 48
NUM_COLOURS = 8
MAX_LABELS = 8
_SHAPES = (  # by series, so that colour is not the only sign
    "M{x} {y}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0",
    "M{x} {y}m-4.5 -4.5h9v9h-9z",
    "M{x} {y}m0 -6l5.6 10h-11.2z",
    "M{x} {y}m0 -6l6 6l-6 6l-6 -6z",
    "M{x} {y}m0 6l5.6 -10h-11.2z",
    "M{x} {y}m-2 -5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
)


@dataclass(frozen=True, slots=True)
class Point:
    """A group in a scatter plot: cost, score with its interval, series number, title, and whether on the front."""

    x: float
    y: float
    low: float | None
    high: float | None
    series: int
    title: str
    label: str
    on_front: bool


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels; `ticks` are (value, text)."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 1)


def linear_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis with about five round ticks around finite values."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or max(abs(high) * 0.05, 0.5)
    low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(m * power for m in (1, 2, 5, 10) if (high - low) / (m * power) <= 7)
    first = math.ceil(low / step)
    count = int((high - first * step) / step) + 1
    ticks = [round((first + index) * step, 10) for index in range(count)]
    return Axis(low, high, start, end, False, tuple((tick, f"{tick:.6g}") for tick in ticks))


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis around positive values, ticks at 1, 2, 5 times powers of ten, or powers alone."""
    low, high = min(values) / 1.15, max(values) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    candidates = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [tick for tick in candidates if low <= tick <= high]
    if len(ticks) < 3:  # less than a decade: a plain scale's round values serve better
        ticks = [tick for tick, _ in linear_axis([low, high], start, end).ticks if low <= tick <= high]
    return Axis(low, high, start, end, True, tuple((tick, short(tick)) for tick in ticks))


def short(value: float) -> str:
    """1500 -> 1.5k: for the ticks of an axis."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def scatter(points: Sequence[Point], x_label: str, y_label: str, better_high: bool) -> str:
    """Points with intervals and the step line of the front; x logarithmic."""
    horizontal = log_axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    ends = [end for p in points for end in (p.y, p.low, p.high) if end is not None]
    vertical = linear_axis(ends, HEIGHT - BOTTOM, TOP)
    front = sorted({(point.x, point.y) for point in points if point.on_front})
    description = f"{y_label} against {x_label}: {len(points)} groups, {len(front)} on the Pareto front"
    parts = [_open(description), _frame(horizontal, vertical, x_label, y_label)]
    parts.append(_front_line(front, horizontal, vertical))
    ordered = sorted(points, key=lambda point: point.on_front)  # the front is drawn on top
    parts += [_point(point, horizontal, vertical) for point in ordered]
    labelled = [point for point in points if point.on_front]
    if len(labelled) <= MAX_LABELS:
        parts += _labels(labelled, horizontal, vertical, better_high)
    return "".join([*parts, "</svg>"])


def _open(description: str) -> str:
    text = escape(description)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text}" class="plot"><desc>{text}</desc>'
    )


def _frame(horizontal: Axis, vertical: Axis, x_label: str, y_label: str) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value, text in vertical.ticks:
        y = vertical(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4}">{escape(text)}</text>')
    for value, text in horizontal.ticks:
        x = horizontal(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 17}">{escape(text)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label middle" x="{middle}" y="{HEIGHT - 10}">{escape(x_label)}</text>')
    centre = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 15 {centre})" x="15" y="{centre}"'
    parts.append(f'<text class="label middle" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _front_line(front: Sequence[tuple[float, float]], horizontal: Axis, vertical: Axis) -> str:
    if not front:
        return ""
    path = f"M{horizontal(front[0][0])} {vertical(front[0][1])}"
    for x, y in front[1:]:
        path += f"H{horizontal(x)}V{vertical(y)}"
    return f'<path class="front" d="{path}H{WIDTH - RIGHT}"/>'


def _point(point: Point, horizontal: Axis, vertical: Axis) -> str:
    x, y = horizontal(point.x), vertical(point.y)
    bar = ""
    if point.low is not None and point.high is not None:
        bar = f'<path class="interval" d="M{x} {vertical(point.low)}V{vertical(point.high)}"/>'
    shape = _SHAPES[point.series % len(_SHAPES)].format(x=x, y=y)
    kind = "point best" if point.on_front else "point"
    return (
        f'<g class="s{point.series % NUM_COLOURS}">{bar}<path class="{kind}" d="{shape}">'
        f"<title>{escape(point.title)}</title></path></g>"
    )


def _labels(points: Sequence[Point], horizontal: Axis, vertical: Axis, above: bool) -> list[str]:
    """Names of front points, best first; one that would run over another is left to the point's title."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: -point.y if above else point.y):
        x, y = horizontal(point.x), max(vertical(point.y) + (-11 if above else 19), TOP + 10)
        text = point.label if len(point.label) <= 56 else point.label[:55] + "…"
        length = 5.8 * len(text)
        left = x - length + 8
        if left < LEFT + 4:  # no room before the point: after it, off the line of the front
            left, y = x + 9, y + (24 if above else -20)
        if all(abs(y - row) > 12 or left > end + 6 for row, end in taken):
            taken.append((y, left + length))
            parts.append(f'<text class="name" x="{left:.1f}" y="{y}">{escape(text)}</text>')
    return parts


def lines(
    curves: Sequence[tuple[int, str, Curve]], y_label: str, value: Callable[[float], float] = lambda y: y
) -> str:
    """Curves over epochs as (series number, title, curve); a tick on the line marks the start of a stage."""
    drawn = [(series, title, curve) for series, title, curve in curves if curve.points]
    horizontal = linear_axis([0, *(c.points[-1][0] for _, _, c in drawn)], LEFT, WIDTH - RIGHT)
    ys = [value(y) for _, _, curve in drawn for _, y in curve.points]
    vertical = linear_axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [_open(f"{y_label} over the epochs of {len(drawn)} runs")]
    parts.append(_frame(horizontal, vertical, "epoch, counted through all stages", y_label))
    for series, title, curve in drawn:
        at = [(horizontal(x), vertical(value(y))) for x, y in curve.points]
        path = "M" + "L".join(f"{x} {y}" for x, y in at)
        parts.append(f'<g class="s{series % NUM_COLOURS} series" data-series="{series}">')
        parts.append(f'<path class="curve" d="{path}"><title>{escape(title)}</title></path>')
        for start, stage in curve.starts[1:]:
            near = min(curve.points, key=lambda point: abs(point[0] - start))
            x, y = horizontal(near[0]), vertical(value(near[1]))
            parts.append(f'<path class="stage" d="M{x} {y - 5}v10"><title>{escape(stage)}</title></path>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def swatch(series: int) -> str:
    """The sign of a series, for a legend."""
    shape = _SHAPES[series % len(_SHAPES)].format(x=7, y=7)
    return (
        f'<svg viewBox="0 0 14 14" class="swatch s{series % NUM_COLOURS}" aria-hidden="true">'
        f'<path class="point" d="{shape}"/></svg>'
    )
