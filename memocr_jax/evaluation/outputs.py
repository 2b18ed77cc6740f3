"""Makes the summary, tables and plots of an evaluation from its journal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memocr_jax.config import EvalConfig
from memocr_jax.evaluation import plots, tables
from memocr_jax.evaluation.journal import Place
from memocr_jax.evaluation.summary import METRICS, READ, summarise
from render.files import write_atomically


def write_outputs(
    directory: Path,
    entries: Mapping[Place, Mapping[str, Any]],
    settings: EvalConfig,
    seed: int,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write summary.json, table.{md,csv,tex} and plots/*.svg; returns the summary.

    Args:
        directory: of the evaluation.
        entries: the finished questions, by place.
        seed: of the intervals' resampling.
        about: what was evaluated; goes into the summary. `about["sets"]` has an object for each set, which
            is completed here.
    """
    results = [result for entry in entries.values() for result in entry["results"]]
    summary = {**about, **summarise(results, settings.bootstrap, seed)}
    summary["sets"] = [
        {**one, **_about_set([entry for place, entry in entries.items() if place[0] == s])}
        for s, one in enumerate(about["sets"])
    ]
    write_atomically(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    for name, write in (("md", tables.markdown), ("csv", tables.comma_separated), ("tex", tables.latex)):
        write_atomically(directory / f"table.{name}", write(summary))
    folder = directory / "plots"
    folder.mkdir(exist_ok=True)
    for metric in METRICS:
        for name, draw in (("budget", plots.by_budget), ("length", plots.by_length)):
            if (figure := draw(summary, metric)) is not None:
                write_atomically(folder / f"{metric}_by_{name}.svg", plots.svg(figure))
    return summary


def _about_set(entries: list[Mapping[str, Any]]) -> dict[str, Any]:
    """How long a set's documents are, how many answers could not be read, and what raw history was given."""
    about: dict[str, Any] = {
        "document_tokens": _mean([entry["document_tokens"] for entry in entries]),
        "failed": sum(r["status"] not in READ for entry in entries for r in entry["results"]),
    }
    given = []
    for entry in entries:
        for result, shown in zip(entry["results"], entry["shown_tokens"], strict=True):
            if result["method"] == "raw history" and result["sample"] == 0:
                given.append((shown, entry["document_tokens"]))
    if given:
        about["raw_history"] = {
            "documents_cut": sum(shown < whole for shown, whole in given),
            "given_tokens": _mean([shown for shown, _ in given]),
        }
    return about


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None
