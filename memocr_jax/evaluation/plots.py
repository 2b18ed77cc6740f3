"""Plots of a summary, as SVG: accuracy against budget by method, and by length."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memocr_jax.evaluation.summary import METRIC_NAMES
from memocr_jax.evaluation.tables import AVERAGE, Score, paper_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#2563c9", "#d9730d", "#0f9272", "#b3379b", "#7a5bd0", "#a3850b", "#0d8fb5", "#6b7280")
INK, GRID = "#667085", "#dfe3e9"
METHODS = {
    "visual memory": (0, "o"),
    "visual without layout": (1, "s"),
    "text memory": (2, "^"),
    "raw history": (7, "D"),
}
"""Place in the palette, and marker, of the known methods."""


def by_budget(summary: Mapping[str, Any], metric: str) -> Figure | None:
    """Accuracy against budget: a panel for each data set (and the average) and length; None without budgets.

    A method without a budget is a level line; shaded are the 95 % intervals.
    """
    table = paper_table(summary, metric)
    if not table.budgets:
        return None
    figure, axes = _grid(len(table.names), len(table.lengths))
    for row, name in zip(axes, table.names, strict=True):
        for axis, length in zip(row, table.lengths, strict=True):
            if (name, length) not in table.columns:
                axis.axis("off")
                continue
            for k, method in enumerate(table.methods):
                _line(axis, method, k, table.budgets, table.scores(method, name, length))
            axis.set_xscale("log", base=2)
            axis.set_xticks(table.budgets, [str(budget) for budget in table.budgets])
            axis.minorticks_off()
            axis.set_title(f"{name}, {length}", fontsize=10, parse_math=False)
    _label(figure, axes, "budget, tokens", metric)
    return figure


def by_length(summary: Mapping[str, Any], metric: str) -> Figure | None:
    """Accuracy against the documents' length at the largest, a middle and the smallest budget; None when
    there is one length only."""
    table = paper_table(summary, metric)
    names = [AVERAGE] if AVERAGE in table.names else table.names
    lengths, budgets = table.lengths, table.budgets[::-1]
    if len(lengths) < 2:
        return None
    chosen = list(dict.fromkeys([*budgets[:1], *budgets[len(budgets) // 2 :][:1], *budgets[-1:]])) or [None]
    figure, axes = _grid(len(names), len(chosen))
    for row, name in zip(axes, names, strict=True):
        for axis, budget in zip(row, chosen, strict=True):
            for k, method in enumerate(table.methods):
                found = [table.scores(method, name, length) for length in lengths]
                scores = {x: s.get(budget, s.get(None)) for x, s in enumerate(found)}
                _line(axis, method, k, range(len(lengths)), {x: s for x, s in scores.items() if s})
            axis.set_xticks(range(len(lengths)), lengths, parse_math=False)
            axis.set_xlim(-0.2, len(lengths) - 0.8)
            title = f"{name}, " + ("no budget" if budget is None else f"budget {budget}")
            axis.set_title(title, fontsize=10, parse_math=False)
    _label(figure, axes, "document length", metric)
    return figure


def svg(figure: Figure, fonttype: str = "path") -> str:
    """The figure as SVG, the same text for the same figure; letters are drawn ("path") or text ("none")."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "memocr", "svg.fonttype": fonttype}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def figure_of(rows: int, columns: int, panel: tuple[float, float] = (3.4, 2.5)) -> tuple[Figure, Any]:
    """A figure of rows x columns panels with the look that all plots share; no window is opened."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel[0] * columns + 0.5, panel[1] * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color="#9aa4b5")
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
    return figure, axes


def _grid(rows: int, columns: int) -> tuple[Figure, Any]:
    figure, axes = figure_of(rows, columns)
    for axis in axes.flat:
        axis.set_ylim(0, 100)
    return figure, axes


def method_colour(method: str, place: int) -> int:
    """Index into the palette of a method, which is the `place`-th of its evaluation."""
    return METHODS[method][0] if method in METHODS else 3 + place % 4


def _line(axis: Axes, method: str, place: int, xs: Sequence[int], scores: Mapping[Any, Score]) -> None:
    colour = PALETTE[method_colour(method, place)]
    if not scores:
        return
    if None in scores:
        if len(xs) > 0:
            level = scores[None]
            axis.axhline(100 * level["mean"], color=colour, linestyle="--", linewidth=1.4, label=method)
            if level["low"] is not None:
                axis.axhspan(100 * level["low"], 100 * level["high"], color=colour, alpha=0.10, linewidth=0)
        return
    known = [x for x in xs if x in scores]
    axis.plot(
        known,
        [100 * scores[x]["mean"] for x in known],
        color=colour,
        marker=METHODS.get(method, (0, "o"))[1],
        markersize=4,
        linewidth=1.6,
        label=method,
        clip_on=False,
        zorder=3,
    )
    if all(scores[x]["low"] is not None for x in known):
        low, high = ([100 * scores[x][end] for x in known] for end in ("low", "high"))
        axis.fill_between(known, low, high, color=colour, alpha=0.13, linewidth=0)


def _label(figure: Figure, axes: Any, xlabel: str, metric: str) -> None:
    """Name the outer axes, and the lines of all panels once."""
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{METRIC_NAMES[metric]}, %")
    handles = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            fontsize=9,
        )
