"""The evaluation's results: accuracy against budget, as a table and a chart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memocr_jax.report.charts import COLOURS, Chart, Series, line_chart
from memocr_jax.report.values import finite, short, text, texts, whole

METRICS = {"em": "EM %", "f1": "F1 %", "sub_em": "sub-EM %"}
MAX_ROWS = 400
"""Cells shown of an evaluation; its own report has them all."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracy by data set, length, method and budget."""

    facts: tuple[tuple[str, str], ...]
    """What else the summary says, as the number of questions."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chart: Chart | None
    failures: tuple[str, ...]
    """What could not be read or scored; it counts as wrong."""


def read_evaluation(summary: Mapping[str, Any]) -> Evaluation | None:
    """Lay out `evaluation/summary.json` (memocr_jax.evaluation.summary); None when it has no cells."""
    found = summary.get("cells")
    cells = [cell for cell in found if isinstance(cell, Mapping)] if isinstance(found, list) else []
    if not cells:
        return None
    return Evaluation(
        facts=tuple(
            (name.replace("_", " "), short(value) if isinstance(value, float) else text(value))
            for name, value in summary.items()
            if isinstance(value, str | int | float)
        ),
        columns=("data set", "length", "method", "budget", *METRICS.values(), "95 % of EM", "image tokens"),
        rows=tuple(map(_row, cells[:MAX_ROWS])),
        chart=_chart(cells),
        failures=texts(summary.get("failures")),
    )


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (_score(cell, "em", end) for end in ("low", "high"))
    budget = whole(cell.get("budget"))
    return (
        *(text(cell.get(name)) for name in ("dataset", "length", "method")),
        "–" if budget is None else f"{budget:,}",
        *(_percent(_score(cell, metric, "mean")) for metric in METRICS),
        "–" if low is None or high is None else f"{_percent(low)} to {_percent(high)}",
        short(finite(cell.get("image_tokens"))),
    )


def _chart(cells: list[Mapping[str, Any]]) -> Chart | None:
    """Exact match against budget: a line for each method, averaged over data sets and lengths."""
    scores: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        budget, score = whole(cell.get("budget")), _score(cell, "em", "mean")
        if budget is not None and budget > 0 and score is not None:
            scores.setdefault(text(cell.get("method")), {}).setdefault(budget, []).append(score)
    budgets = sorted({budget for by_budget in scores.values() for budget in by_budget})
    mean = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    series = [
        Series(method, tuple(mean(by_budget.get(budget)) for budget in budgets), colour % COLOURS)
        for colour, (method, by_budget) in enumerate(scores.items())
    ]
    if not budgets:
        return None
    return line_chart(
        "Exact match against budget",
        budgets,
        series,
        note="share of all questions, mean over data sets and lengths; by tokens of the budget",
        bounds=(0.0, 1.0),
        x_name="budget",
        doubling=True,
    )


def _score(cell: Mapping[str, Any], metric: str, end: str) -> float | None:
    scores = cell.get(metric)
    return finite(scores.get(end)) if isinstance(scores, Mapping) else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
