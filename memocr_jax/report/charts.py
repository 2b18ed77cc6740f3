"""Line charts of a report: drawn by matplotlib as SVG, coloured by the page's style sheet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from markupsafe import Markup

from memocr_jax.evaluation.plots import GRID, INK, PALETTE, svg
from memocr_jax.report.values import ends, percent, short

MARKERS_UP_TO = 30
"""A line with up to this many values has a marker at each."""
SMOOTH_FROM = 31
"""With at least this many values a smoothed line is drawn over the faint raw one."""
NAMES = {
    **{colour: f"var(--c{i})" for i, colour in enumerate(PALETTE)},
    INK: "var(--dim)",
    GRID: "var(--line)",
}
"""The style sheet's name of each colour of a figure; the style sheet has light and dark values."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Values of one metric; None where there is none."""

    label: str
    values: Sequence[float | None]
    colour: int = 0
    """Index into the palette."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawn chart and its legend."""

    title: str
    note: str
    svg: Markup
    """Holds no text of a run: the template writes that, escaped."""
    legend: Sequence[tuple[int | None, str, str]]
    """(colour or None, label, value) of each line."""


def line_chart(
    title: str,
    xs: Sequence[int],
    lines: Sequence[Line],
    *,
    note: str = "",
    share: bool = False,
    low: float | None = None,
    high: float | None = None,
    doubling: bool = False,
    legend: Sequence[tuple[int | None, str, str]] | None = None,
) -> Chart | None:
    """Draw a chart; None when no line has a value.

    Args:
        xs: the step or budget of each value, ascending.
        lines: what is drawn, each with a value for every x.
        share: values are shares, shown in per cent.
        low, high: what the vertical axis must show at least.
        doubling: equal ratios of `xs`, which are above 0, lie equally far apart, and each has its tick.
        legend: default: how each line went, from its first to its last tenth.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lines = [line for line in lines if any(value is not None for value in line.values)]
    if not lines:
        return None
    figure = Figure(figsize=(4.2, 1.9), facecolor="none")
    axis = figure.add_axes((0.13, 0.13, 0.84, 0.78), facecolor="none")
    for line in lines:
        _draw(axis, xs, line)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(GRID)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, labelcolor=INK, color=GRID, length=0, pad=4)
    axis.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axis.yaxis.get_offset_text().set(color=INK, size=8)
    if share:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    known = [value for line in lines for value in line.values if value is not None]
    bottom, top = axis.get_ylim()
    bottom = bottom if low is None else min(low, *known)
    top = top if high is None else max(high, *known)
    axis.set_ylim(bottom, top if any(known) else 1)
    if doubling:
        axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [f"{x:,}" for x in xs])
        axis.minorticks_off()
    elif len(xs) <= 6:
        axis.set_xticks(xs)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return Chart(title, note, _inline(svg(figure, fonttype="none")), legend or _went(lines, share))


def _draw(axis, xs: Sequence[int], line: Line) -> None:
    """Draw a line with a gap where a value is missing. A line with few values, as of validations, has no
    gaps."""
    import numpy as np

    colour = PALETTE[line.colour % len(PALETTE)]
    values = np.array([np.nan if value is None else value for value in line.values])
    there = np.isfinite(values)
    few = there.sum() <= len(xs) / 2
    shown = (np.asarray(xs)[there], values[there]) if few else (np.asarray(xs), values)
    smooth = there.sum() >= SMOOTH_FROM
    axis.plot(
        *shown,
        color=colour,
        linewidth=0.8 if smooth else 1.6,
        alpha=0.35 if smooth else 1,
        linestyle="-" if line.colour < len(PALETTE) else "--",
        marker="o" if there.sum() <= MARKERS_UP_TO else "",
        markersize=3.5,
        clip_on=False,
    )
    if smooth:
        half = max(2, there.sum() // 24)
        averages = [
            np.nan if np.isnan(value) else np.nanmean(shown[1][i - reach : i + reach + 1])
            for i, value in enumerate(shown[1])
            for reach in [min(half, i, len(shown[1]) - 1 - i)]
        ]
        axis.plot(shown[0], averages, color=colour, linewidth=1.6, clip_on=False)


def _went(lines: Sequence[Line], share: bool) -> list[tuple[int | None, str, str]]:
    show = percent if share else short
    legend = []
    for line in lines:
        first, last = map(show, ends([value for value in line.values if value is not None]))
        value = first if first == last else f"{first} → {last}"
        legend.append((None, "", value) if len(lines) == 1 else (line.colour, line.label, value))
    return legend


def _inline(text: str) -> Markup:
    """An SVG file as an element of a page: no prologue, no style and no names of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', "", text, count=5)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"| font-family: [^;]*;| transform="rotate\(-0[^"]*"', "", text)
    text = re.sub(r"\n\s*", "\n", text)
    return Markup(re.sub("|".join(NAMES), lambda found: NAMES[found[0]], text))
