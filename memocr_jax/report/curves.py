"""Which metric is drawn where: the one table of curves, and how keys `stage/name` become series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from memocr_jax.report.charts import Chart, Series, line_chart
from memocr_jax.report.values import finite, short


@dataclasses.dataclass(frozen=True)
class Curve:
    """One chart: the metrics whose key matches one of `keys` and that no earlier chart took."""

    title: str
    keys: tuple[str, ...]
    note: str = ""
    bounds: tuple[float, float] | None = None


REWARDS = Curve(
    "Rewards",
    ("reward/std", "reward/aug_m", "reward/aug_q"),
    "share of right answers: std, low resolution (aug_m), cloze (aug_q)",
    (0.0, 1.0),
)

CURVES = (
    REWARDS,
    Curve(
        "Validation", ("validation/*accuracy*", "validation/*em*", "validation/*f1*", "validation/reward*")
    ),
    Curve("Loss", ("loss/*",), "clipped policy loss and what is added to it"),
    Curve("KL to the initial policy", ("kl/*",), "k3 estimate, per token"),
    Curve("Gradient norm", ("*grad*norm*",), "before clipping"),
    Curve("Response length", ("*response*tokens*", "*/response_length*"), "sampled tokens a turn"),
    Curve("Page size", ("*page*tokens*", "*image*tokens*", "*view*tokens*"), "visual tokens of 28 x 28 px"),
    Curve(
        "Zero-variance groups",
        ("*zero_variance*", "*zero_std*"),
        "share of groups whose samples all score alike",
        (0.0, 1.0),
    ),
    Curve(
        "Failures",
        ("*fail*", "*missing*", "*timeout*", "*crash*", "*truncated*", "*empty*", "*no_box*", "*invalid*"),
        "counted, weighted zero",
    ),
    Curve("Throughput", ("time/*_per_s*", "*tokens_per_s*"), "tokens per second"),
    Curve("Time per stage", ("time/*_s",), "seconds"),
)


def metric_keys(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """All keys with a numeric value, in the order in which they first appear; `step` is not one."""
    keys = {key: None for line in metrics for key, value in line.items() if finite(value) is not None}
    return [key for key in keys if key != "step"]


def series_of(metrics: Sequence[Mapping[str, Any]], key: str, label: str) -> Series:
    """The values of one metric over all steps."""
    return Series(label, tuple(finite(line.get(key)) for line in metrics))


def _labels(keys: Sequence[str]) -> list[str]:
    """Keys without the stage when all share it."""
    stages = {key.rpartition("/")[0] for key in keys}
    return [key.rpartition("/")[2] for key in keys] if len(stages) == 1 else list(keys)


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
        series = [series_of(metrics, key, label) for key, label in zip(keys, _labels(keys), strict=True)]
        chart = line_chart(curve.title, steps, series, note=curve.note, bounds=curve.bounds)
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
