"""Accuracies of an evaluation, with their uncertainty, by data set, length, method and budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memocr_jax.core.rng import host_rng

METRICS = ("em", "f1", "sub_em")
METRIC_NAMES = {"em": "Exact match", "f1": "F1", "sub_em": "Sub-EM"}
READ = ("OK", "TRUNCATED", "MISSING_GLYPHS")
"""Statuses of pages and texts that were read; every other status is a failure, and counts as wrong."""
CONFIDENCE = 0.95

Cell = tuple[str, int | None]
"""(method, budget)"""


@dataclasses.dataclass(frozen=True)
class _Set:
    """The scores of one data set at one length: per question the mean over its samples."""

    name: tuple[str, str]
    scores: dict[Cell, np.ndarray]
    """f64[questions, metrics]; nan where a question is missing."""
    weights: np.ndarray
    """f64[resamples, questions]: how often each question was drawn."""

    def means(self, cell: Cell) -> np.ndarray:
        """f64[metrics]"""
        return np.nanmean(self.scores[cell], axis=0)

    def resampled(self, cell: Cell) -> np.ndarray:
        """f64[resamples, metrics]: the means of the resampled questions."""
        present = ~np.isnan(self.scores[cell][:, 0])
        weights = self.weights[:, present]
        total = np.maximum(weights.sum(1, keepdims=True), 1)
        return weights @ self.scores[cell][present] / total


def summarise(results: Sequence[Mapping[str, Any]], resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Mean scores over all questions, failures counted as wrong, with bootstrap confidence intervals.

    Args:
        results: objects with the fields `methods.KEYS`.
        resamples: resamplings of the questions (a question with all its samples is drawn together, and the
            same questions for every method and budget); 0 leaves the intervals out.
        seed: of the resampling.

    Returns:
        `cells`, one for each data set, length, method and budget: `questions`, `answers` (samples in all),
        `failed`, `boxed` (share that put an answer into a box), `image_tokens` (mean) and for each metric
        {mean, low, high, drop}, where low..high is the 95 % interval and `drop` the relative change against
        the method's largest budget (None where that is 0). `averages`, over the data sets of each length: the
        metrics alike. `failures`: what could not be read or scored, once for all budgets.
    """
    rows: dict[tuple[str, str], dict[Cell, list[Mapping[str, Any]]]] = {}
    for result in results:
        cells = rows.setdefault((result["dataset"], result["length"]), {})
        cells.setdefault((result["method"], result["budget"]), []).append(result)
    sets = [_scores(name, cells, resamples, seed) for name, cells in rows.items()]
    cells = [
        {
            "dataset": one.name[0],
            "length": one.name[1],
            "method": method,
            "budget": budget,
            **_counts(rows[one.name][method, budget]),
            **_metrics([one], (method, budget)),
        }
        for one in sets
        for method, budget in in_order(one.scores)
    ]
    averages = []
    for length in dict.fromkeys(length for _, length in rows):
        among = [one for one in sets if one.name[1] == length]
        for cell in in_order({cell: None for one in among for cell in one.scores}):
            having = [one for one in among if cell in one.scores]
            averages.append(
                {
                    "length": length,
                    "method": cell[0],
                    "budget": cell[1],
                    "datasets": len(having),
                    **_metrics(having, cell),
                }
            )
    failures = {
        f"{r['dataset']} {r['length']}, {r['id']}, sample {r['sample']}: "
        + ("no accepted answer" if r["status"] == "NO_ANSWER" else f"{r['method']} {r['status']}"): None
        for r in results
        if r["status"] not in READ
    }
    return {
        "questions": sum(len({r["id"] for rs in cells.values() for r in rs}) for cells in rows.values()),
        "cells": cells,
        "averages": averages,
        "failures": list(failures),
    }


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Methods as they first appear, budgets from the largest down."""
    cells = list(cells)
    methods = list(dict.fromkeys(method for method, _ in cells))
    return sorted(cells, key=lambda cell: (methods.index(cell[0]), -(cell[1] or 0)))


def _scores(
    name: tuple[str, str], cells: Mapping[Cell, Sequence[Mapping[str, Any]]], resamples: int, seed: int
) -> _Set:
    ids = list(dict.fromkeys(r["id"] for rows in cells.values() for r in rows))
    place = {example_id: i for i, example_id in enumerate(ids)}
    scores = {}
    for cell, rows in cells.items():
        sums, counts = np.zeros((len(ids), len(METRICS))), np.zeros(len(ids))
        for r in rows:
            sums[place[r["id"]]] += [r[metric] for metric in METRICS]
            counts[place[r["id"]]] += 1
        with np.errstate(invalid="ignore"):
            scores[cell] = sums / counts[:, None]
    rng = host_rng(seed, "bootstrap", *name)
    weights = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=resamples)
    return _Set(name, scores, weights.astype(np.float64))


def _metrics(sets: Sequence[_Set], cell: Cell) -> dict[str, dict[str, float | None]]:
    """Each metric's mean over the sets, its interval, and its change against the largest budget."""
    largest = max((other[1] or 0 for one in sets for other in one.scores if other[0] == cell[0]), default=0)
    first = (cell[0], largest or None)
    mean = np.mean([one.means(cell) for one in sets], axis=0)
    base = np.mean([one.means(first) for one in sets if first in one.scores], axis=0)
    low = high = [None] * len(METRICS)
    if len(sets[0].weights):
        resampled = np.mean([one.resampled(cell) for one in sets], axis=0)
        tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
        low, high = (list(map(float, row)) for row in np.quantile(resampled, tails, axis=0))
    return {
        metric: {
            "mean": float(mean[i]),
            "low": low[i],
            "high": high[i],
            "drop": float(mean[i] / base[i] - 1) if base[i] else None,
        }
        for i, metric in enumerate(METRICS)
    }


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [r["image_tokens"] for r in rows if r["image_tokens"] is not None]
    return {
        "questions": len({r["id"] for r in rows}),
        "answers": len(rows),
        "failed": sum(r["status"] not in READ for r in rows),
        "boxed": sum(r["prediction"] is not None for r in rows) / len(rows),
        "image_tokens": sum(tokens) / len(tokens) if tokens else None,
    }
