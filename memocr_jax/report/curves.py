"""The charts of a run's report: which metrics each shows, and their names in words."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from memocr_jax.report.charts import Chart, Line, line_chart
from memocr_jax.report.values import finite

OBJECTIVES = {"std": "whole page", "aug_m": "small page", "aug_q": "cloze"}
"""The three objectives (arXiv 2601.21468, section 4) by their names in the metrics, in their order."""
AT_BUDGET = re.compile(r"validation/accuracy_(\d{1,9})")
EVIDENCE = "Gold evidence in the heading"


@dataclasses.dataclass(frozen=True)
class Curve:
    """One chart: the metrics whose key matches one of `keys` and that no earlier chart took."""

    title: str
    keys: tuple[str, ...]
    note: str = ""
    share: bool = False
    """Shown in per cent."""
    low: float | None = 0
    high: float | None = None
    """What the vertical axis must show."""


CURVES = (
    Curve("Right answers", ("reward/*",), "share of a step's answers, by how the page is read", True, 0, 1),
    Curve("Validation", ("validation/accuracy*",), "right answers to held-out questions", True, 0, 1),
    Curve(EVIDENCE, ("memory/gold_in_heading",), "share of memories that draw all of it large", True, 0, 1),
    Curve("Loss", ("loss/*",), "the clipped policy loss and what is added to it", low=None),
    Curve("KL to the initial policy", ("kl/*",), "per token", low=None),
    Curve("Gradient norm", ("grad/norm",), "before clipping"),
    Curve("Entropy of the policy", ("policy/entropy",), "nats per token"),
    Curve("Length of memories and answers", ("draft/tokens", "read/tokens_*"), "sampled tokens"),
    Curve("Cut off by the length limit", ("draft/truncated", "read/truncated_*"), "share of turns", True),
    Curve("Size of a page", ("view/tokens_*",), "visual tokens of 28 x 28 px, as read"),
    Curve("Groups without a signal", ("group/zero_variance_*",), "share whose samples score alike", True),
    Curve(
        "Failures",
        (
            "render/empty",
            "render/failed",
            "render/truncated",
            "validation/failed",
            "*/missing",
            "*/without_*",
        ),
        "number in a step; they weigh nothing",
    ),
    Curve("Clipped", ("policy/clip_fraction", "grad/clipped_share"), "share", True),
    Curve("Throughput", ("time/tokens_per_s",), "sampled tokens per second"),
    Curve("Time per stage", ("time/*_s",), "seconds of a step"),
)
LABELS = {
    "draft/tokens": "memory",
    "draft/truncated": "memory",
    "read/tokens": "answer",
    "read/truncated": "answer",
    "loss/kl": "KL term",
    "validation/accuracy": "mean of the budgets",
    "memory/gold_in_heading": "memories",
    "render/empty": "empty pages",
    "render/failed": "pages not rendered",
    "render/truncated": "pages cut off",
    "validation/failed": "validation answers",
    "gap_fill/missing": "pages without a cloze",
    "question/without_answer": "questions without an answer",
    "policy/clip_fraction": "tokens",
    "grad/clipped_share": "updates",
}


def label(key: str) -> str:
    """A metric's name beside others of its chart."""
    if budget := AT_BUDGET.fullmatch(key):
        return f"at {int(budget[1]):,} tokens"
    for name, words in OBJECTIVES.items():
        if key.endswith(("/" + name, "_" + name)):
            known = LABELS.get(key.removesuffix("_" + name))
            return f"{known}, {words}" if known else words
    name = key.partition("/")[2] or key
    return LABELS.get(key, name.removesuffix("_s").replace("_", " "))


def _place(key: str) -> int | None:
    """Place of the objective that a key ends in, as `view/tokens_aug_m` does."""
    return next((i for i, name in enumerate(OBJECTIVES) if key.endswith(("/" + name, "_" + name))), None)


def _lines(metrics: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Line]:
    """Lines in the objectives' order and colours, then what belongs to none, large budgets first."""

    def order(key: str) -> tuple[int, int]:
        budget = AT_BUDGET.fullmatch(key)
        return len(OBJECTIVES) if (i := _place(key)) is None else i, -int(budget[1]) if budget else 0

    ordered = sorted(keys, key=order)
    free = itertools.count(len(OBJECTIVES) if any(_place(key) is not None for key in keys) else 0)
    return [
        Line(
            label(key),
            [finite(line.get(key)) for line in metrics],
            next(free) if (place := _place(key)) is None else place,
        )
        for key in ordered
    ]


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[str]]:
    """The charts of the table above, and the keys of all metrics that are in none of them.

    Args:
        metrics: one mapping a step, steps ascending.
    """
    steps = [int(line["step"]) for line in metrics]
    keys = {key: None for line in metrics for key, value in line.items() if finite(value) is not None}
    left = [key for key in keys if key != "step"]
    charts = []
    for curve in CURVES:
        own = [key for key in left if any(fnmatchcase(key, pattern) for pattern in curve.keys)]
        left = [key for key in left if key not in own]
        options = {"note": curve.note, "share": curve.share, "low": curve.low, "high": curve.high}
        if (chart := line_chart(curve.title, steps, _lines(metrics, own), **options)) is not None:
            charts.append(chart)
    return charts, left
