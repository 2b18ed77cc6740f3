"""The evaluation's results: accuracy against budget, as a table and a chart."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memocr_jax.report.charts import Chart, Series, line_chart
from memocr_jax.report.values import finite, short, text, texts

SCORES = ("em", "f1", "sub_em")
"""What is drawn; other columns, as the number of image tokens, are for the table."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracy at each budget, largest budget first."""

    facts: tuple[tuple[str, str], ...]
    """What else the summary says, as the number of questions."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    chart: Chart | None
    failures: tuple[str, ...]
    """Questions that could not be read or scored; they count as wrong."""


def read_evaluation(summary: Mapping[str, Any]) -> Evaluation | None:
    """Lay out a summary {"budgets": {"512": {"em": 0.5, ...}, ...}, ...}; None when it has no budgets."""
    budgets = summary.get("budgets")
    if not isinstance(budgets, Mapping):
        return None
    scores = {int(b): s for b, s in budgets.items() if str(b).isdigit() and int(b) and isinstance(s, Mapping)}
    columns = tuple(dict.fromkeys(name for row in scores.values() for name in row))
    if not columns:
        return None
    ascending = sorted(scores)
    chart = line_chart(
        "Accuracy against budget",
        ascending,
        [
            Series(name, tuple(finite(scores[b].get(name)) for b in ascending), colour)
            for colour, name in enumerate(name for name in SCORES if name in columns)
        ],
        note="share of all questions, by visual tokens of a page",
        bounds=(0.0, 1.0),
        x_name="budget",
        doubling=True,
    )
    return Evaluation(
        facts=tuple(
            (name.replace("_", " "), short(value) if isinstance(value, float) else text(value))
            for name, value in summary.items()
            if isinstance(value, str | int | float)
        ),
        columns=columns,
        rows=tuple(
            (f"{b:,}", tuple(short(finite(scores[b].get(c))) for c in columns)) for b in reversed(ascending)
        ),
        chart=chart,
        failures=texts(summary.get("failures")),
    )
