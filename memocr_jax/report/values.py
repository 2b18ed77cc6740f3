"""Values of a run's JSON files, which may be anything, as the text and numbers that are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST = 1e100
"""Larger numbers are not drawn."""


def text(value: Any) -> str:
    """Any JSON value as text to show."""
    return "" if value is None else str(value)


def texts(value: Any) -> tuple[str, ...]:
    """A JSON list of texts; a single one is a list of one."""
    if value is None:
        return ()
    return tuple(map(text, value)) if isinstance(value, list) else (text(value),)


def finite(value: Any) -> float | None:
    """A JSON value as a number that can be drawn, or None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """A JSON value as an integer of a size that counts something, or None when it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def short(value: float | None) -> str:
    """A number in few characters: 12,345 · 1.23M · 0.0123 · 4.5e-07."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e12:
        return f"{value:.3g}"
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1 or size < 1e-3 else f"{value:.3f}".rstrip("0").rstrip(".")


def percent(share: float | None) -> str:
    """A share in per cent: 21 %, with one decimal where a whole number would say 0 or 100 too early."""
    if share is None or not math.isfinite(share):
        return "–"
    value = 100 * share
    digits = 0 if value == 0 or 10 <= value < 99.5 or value >= 99.95 else 1
    return f"{value:.{digits}f}\N{NO-BREAK SPACE}%"


def known(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The finite values of one metric, in the order of the steps."""
    return [value for line in metrics if (value := finite(line.get(key))) is not None]


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the first and of the last tenth of some values; there must be one at least."""
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
