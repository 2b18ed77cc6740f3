"""Which metric is drawn where: the one table of curves, and how keys `stage/name` become series."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from memocr_jax.report.charts import Chart, Series, line_chart
from memocr_jax.report.values import finite, short

OBJECTIVES = ("std", "aug_m", "aug_q")
"""The three objectives in their order and, everywhere, in the first three colours."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One chart: the metrics whose key matches one of `keys` and that no earlier chart took."""

    title: str
    keys: tuple[str, ...]
    note: str = ""
    bounds: tuple[float, float] | None = None
    """Smallest and largest value that the vertical axis must show."""


REWARDS = tuple(f"reward/{name}" for name in OBJECTIVES)
SHARE = (0.0, 1.0)
FROM_ZERO = (0.0, 0.0)
CURVES = (
    Curve("Rewards", ("reward/*",), "share right: std, low resolution (aug_m), cloze (aug_q)", SHARE),
    Curve("Validation", ("validation/*",)),
    Curve(
        "Gold evidence in the heading", ("memory/gold_in_heading",), "share of memories, drawn large", SHARE
    ),
    Curve("Loss", ("loss/*",), "clipped policy loss and what is added to it"),
    Curve("KL to the initial policy", ("kl/*",), "per token"),
    Curve("Gradient norm", ("grad/norm",), "before clipping", FROM_ZERO),
    Curve("Entropy of the policy", ("policy/entropy",), "nats per token"),
    Curve("Response length", ("draft/tokens", "read/tokens_*"), "sampled tokens a turn", FROM_ZERO),
    Curve("Cut off by the length limit", ("draft/truncated", "read/truncated_*"), "share of turns", SHARE),
    Curve("Page size", ("view/tokens_*",), "visual tokens of 28 x 28 px, as read", FROM_ZERO),
    Curve(
        "Groups without a signal", ("group/zero_variance_*",), "share whose samples all score alike", SHARE
    ),
    Curve(
        "Failures",
        ("render/empty", "render/failed", "render/truncated", "*/missing", "*/without_*"),
        "counted, weighted zero",
        (0.0, 1.0),
    ),
    Curve("Clipped", ("policy/clip_fraction", "grad/clipped_share"), "share of tokens, of updates", SHARE),
    Curve("Throughput", ("time/tokens_per_s",), "sampled tokens per second", FROM_ZERO),
    Curve("Time per stage", ("time/*_s",), "seconds of a step", FROM_ZERO),
)


def metric_keys(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys with a numeric value, in the order in which they first appear; `step` is not one."""
    keys = {key: None for line in metrics for key, value in line.items() if finite(value) is not None}
    return [key for key in keys if key != "step"]


def series_of(metrics: Sequence[Mapping[str, Any]], key: str, label: str, colour: int = 0) -> Series:
    """The values of one metric over all steps."""
    return Series(label, tuple(finite(line.get(key)) for line in metrics), colour)


def _objective(key: str) -> int | None:
    """Index of the objective that a key ends in, as `view/tokens_aug_m` does."""
    return next((i for i, name in enumerate(OBJECTIVES) if key.endswith(("/" + name, "_" + name))), None)


def _labels(keys: Sequence[str]) -> list[str]:
    """What tells keys apart: the objective if they differ in nothing else, else the key without its stage."""
    objectives = [_objective(key) for key in keys]
    stems = {
        key if i is None else key.removesuffix(OBJECTIVES[i]) for key, i in zip(keys, objectives, strict=True)
    }
    if len(stems) == 1 and None not in objectives:
        return [OBJECTIVES[i] for i in objectives]
    one_stage = len({key.partition("/")[0] for key in keys}) == 1
    return [key.partition("/")[2] or key if one_stage else key for key in keys]


def _lines(metrics: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Series]:
    """Series in the objectives' order and colours, what belongs to no objective after them."""
    ordered = sorted(keys, key=lambda key: len(OBJECTIVES) if (i := _objective(key)) is None else i)
    free = itertools.count(len(OBJECTIVES) if any(_objective(key) is not None for key in keys) else 0)
    return [
        series_of(metrics, key, label, next(free) if (i := _objective(key)) is None else i)
        for key, label in zip(ordered, _labels(ordered), strict=True)
    ]


def draw_curves(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], dict[str, list[Chart]]]:
    """Charts of the table above, and small ones of every other metric by stage.

    Args:
        metrics: one mapping a step, steps ascending.
    """
    steps = [int(line["step"]) for line in metrics]
    left = metric_keys(metrics)
    charts: list[Chart] = []
    for curve in CURVES:
        keys = [key for key in left if any(fnmatchcase(key, pattern) for pattern in curve.keys)]
        left = [key for key in left if key not in keys]
        chart = line_chart(curve.title, steps, _lines(metrics, keys), note=curve.note, bounds=curve.bounds)
        if chart:
            charts.append(chart)
    others: dict[str, list[Chart]] = {}
    for key in sorted(left):
        stage, _, name = key.rpartition("/")
        chart = line_chart(name, steps, [series_of(metrics, key, name)])
        if chart:
            others.setdefault(stage or "other", []).append(chart)
    return charts, others


@dataclasses.dataclass(frozen=True)
class Trend:
    """A metric's mean over the first and the newest tenth of a run."""

    key: str
    first: str
    last: str


def trend(metrics: Sequence[Mapping[str, Any]], key: str) -> Trend | None:
    """How a metric went, or None when no step has it."""
    values = [v for line in metrics if (v := finite(line.get(key))) is not None]
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    return Trend(key, short(sum(values[:tenth]) / tenth), short(sum(values[-tenth:]) / tenth))
