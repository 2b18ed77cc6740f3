"""The evaluation's table: accuracy against budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from memocr_jax.report.values import finite, short


@dataclasses.dataclass(frozen=True)
class EvaluationTable:
    """Accuracy at each budget, largest budget first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def evaluation_table(summary: Mapping[str, Any]) -> EvaluationTable | None:
    """The table of a summary {"budgets": {"512": {"em": 0.5, ...}, ...}}; None when it has none."""
    budgets = summary.get("budgets")
    if not isinstance(budgets, Mapping):
        return None
    rows = {
        int(b): scores for b, scores in budgets.items() if str(b).isdigit() and isinstance(scores, Mapping)
    }
    columns = tuple(dict.fromkeys(name for scores in rows.values() for name in scores))
    if not columns:
        return None
    return EvaluationTable(
        columns,
        tuple(
            (f"{b:,}", tuple(short(finite(rows[b].get(c))) for c in columns))
            for b in sorted(rows, reverse=True)
        ),
    )
