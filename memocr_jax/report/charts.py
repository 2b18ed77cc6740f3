"""Line charts as plain geometry, which the template draws as inline SVG: crisp, and without a library."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

from memocr_jax.report.values import short

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
COLOURS = 8
"""Colours of the palette; further lines use them again, dashed."""
SMOOTH_FROM = 24
"""With at least this many points a smoothed line is drawn over the faint raw one."""
DOTS_UP_TO = 30
"""Up to this many points each one is marked."""


@dataclasses.dataclass(frozen=True)
class Series:
    """Values of one metric over the steps; None where a step has no finite value."""

    label: str
    values: tuple[float | None, ...]
    colour: int = 0
    """Index into the palette of report.css."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A series ready to draw, in the coordinates of the view box."""

    label: str
    colour: int
    last: str
    """Its newest value, for the legend."""
    raw: str
    """SVG path data, broken where values are missing."""
    smooth: str
    """SVG path data of the moving average, or empty."""
    dots: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart over steps."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    hover: str
    """JSON for the pointer: positions and texts of every step."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose [low, high]."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):  # flat, or as good as flat
        pad = abs(low) * 0.5 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick with as many digits as tell it from its neighbours."""
    largest, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    digits = math.ceil(math.log10(largest / step) - 1e-9) + 1
    return short(value) if digits <= 3 or step >= 1 else f"{value:.{digits}g}"


def moving_average(values: Sequence[float | None], half: int) -> list[float | None]:
    """Mean over up to `half` values to either side, as many on both; missing values stay missing."""
    averages: list[float | None] = []
    for i, value in enumerate(values):
        reach = min(half, i, len(values) - 1 - i)
        near = [v for v in values[i - reach : i + reach + 1] if v is not None]
        averages.append(None if value is None else sum(near) / len(near))
    return averages


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data through the points, lifting the pen at each None."""
    parts, pen_down = [], False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return "".join(parts)


def _x_axis(steps: Sequence[int], doubling: bool) -> tuple[Callable[[float], float], list[int]]:
    """Where a step lies, and the steps that get a tick."""
    scale = math.log2 if doubling else float
    first, inner = steps[0], WIDTH - LEFT - RIGHT
    span = scale(steps[-1]) - scale(first)

    def x_of(step: float) -> float:
        return round(LEFT + inner * ((scale(step) - scale(first)) / span if span else 0.5), 1)

    if doubling or len(steps) == 1:
        return x_of, list(steps)
    ticks = [int(t) for t in nice_ticks(first, steps[-1], 6) if first <= t <= steps[-1] and t == int(t)]
    if not ticks or ticks[0] > first + 0.1 * span:
        ticks.insert(0, first)
    return x_of, ticks


def line_chart(
    title: str,
    steps: Sequence[int],
    series: Sequence[Series],
    *,
    note: str = "",
    bounds: tuple[float, float] | None = None,
    x_name: str = "step",
    doubling: bool = False,
) -> Chart | None:
    """Lay out a chart, or None when no series has a value.

    Args:
        title: heading of the chart.
        steps: the step of each value, ascending.
        series: what is drawn, each with one value a step.
        note: a line of explanation.
        bounds: smallest and largest value the vertical axis must show, as (0, 1) for accuracies.
        x_name: what the horizontal axis counts.
        doubling: equal ratios of `steps` lie equally far apart, and each has its tick; all must be above 0.
    """
    series = [s for s in series if any(v is not None for v in s.values)]
    if not series:
        return None
    known = [v for s in series for v in s.values if v is not None]
    shown = [*known, *(bounds or ())]
    ticks = nice_ticks(min(shown), max(shown))
    low, high = ticks[0], ticks[-1]
    x_of, x_ticks = _x_axis(steps, doubling)
    inner_h = HEIGHT - TOP - BOTTOM

    def y_of(value: float) -> float:
        return round(TOP + inner_h * (1 - (value - low) / (high - low)), 1)

    def points(values: Sequence[float | None]) -> list[tuple[float, float] | None]:
        return [None if v is None else (x_of(x), y_of(v)) for x, v in zip(steps, values, strict=True)]

    smooth = len(steps) >= SMOOTH_FROM
    lines = []
    for s in series:
        raw = points(s.values)
        lines.append(
            Line(
                label=s.label,
                colour=s.colour,
                last=short(next(v for v in reversed(s.values) if v is not None)),
                raw=_path(raw),
                smooth=_path(points(moving_average(s.values, max(2, len(steps) // 24)))) if smooth else "",
                dots=tuple(p for p in raw if p) if len(steps) <= DOTS_UP_TO else (),
            )
        )
    hover = {
        "x": [x_of(step) for step in steps],
        "heads": [f"{x_name} {step:,}" for step in steps],
        "series": [
            {"label": s.label, "colour": s.colour % COLOURS, "text": [short(v) for v in s.values]}
            for s in series
        ],
    }
    return Chart(
        title=title,
        note=note,
        lines=tuple(lines),
        x_ticks=tuple((x_of(t), f"{t:,}") for t in x_ticks),
        y_ticks=tuple((y_of(t), tick_text(t, ticks)) for t in ticks),
        hover=json.dumps(hover, separators=(",", ":")),
    )
