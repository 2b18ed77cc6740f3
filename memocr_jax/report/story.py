"""Before and after: the same held-out questions, asked of a run's start and of what it learned.

Two evaluations are compared, `<run>/evaluation_before` and `<run>/evaluation` (`memocr_jax.story` leaves
both). Which questions are shown is not chosen: they are the first ones that both evaluations have.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memocr_jax.report.charts import Chart, Series, line_chart
from memocr_jax.report.record import RunRecord, read_json_lines
from memocr_jax.report.trajectories import Picture, PictureReader
from memocr_jax.report.values import finite, text, texts, whole
from render.views import fit

BEFORE = "evaluation_before"
AFTER = "evaluation"
QUESTIONS = 4
"""Questions shown."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was answered at one budget."""

    budget: int
    prediction: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Told:
    """One question on one side: its page, the page at the lowest budget, and the answers, budgets falling."""

    page: Picture | None
    small: Picture | None
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same question before and after."""

    question: str
    answers: tuple[str, ...]
    before: Told
    after: Told


@dataclasses.dataclass(frozen=True)
class Story:
    chart: Chart | None
    """Accuracy against budget, before and after."""
    heading: Chart | None
    """Share of memories with the gold evidence in the heading, over steps."""
    questions: int
    pairs: tuple[Pair, ...]


def read_story(record: RunRecord, image_mb: int) -> Story | None:
    """The story of a run; None unless both evaluations are there with the same questions."""
    folders = {name: record.run_dir / name for name in (BEFORE, AFTER)}
    entries = {name: _entries(folder) for name, folder in folders.items()}
    same = [place for place in entries[AFTER] if place in entries[BEFORE]]
    if not same or any(_asked(entries[BEFORE][place]) != _asked(entries[AFTER][place]) for place in same):
        return None
    pictures = {name: PictureReader(f / "pages", image_mb * 2**20 // 2) for name, f in folders.items()}
    pairs = []
    for place in same[:QUESTIONS]:
        before, after = (_told(entries[name][place], pictures[name]) for name in (BEFORE, AFTER))
        first = _results(entries[AFTER][place])[0]
        pairs.append(Pair(_asked(entries[AFTER][place])[0], texts(first.get("answers")), before, after))
    steps = [int(line["step"]) for line in record.metrics]
    share = tuple(finite(line.get("memory/gold_in_heading")) for line in record.metrics)
    heading = None
    if any(value is not None for value in share):
        heading = line_chart(
            "Gold evidence in the heading",
            steps,
            [Series("share", share, 2)],
            note="share of a step's memories that draw the whole evidence large",
            bounds=(0.0, 1.0),
        )
    return Story(
        _chart({name: [entries[name][p] for p in same] for name in entries}), heading, len(same), tuple(pairs)
    )


def _entries(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Finished questions by place, of the first sample, as the evaluation's journal has them."""
    found = {}
    for path in sorted((folder / "journal").glob("part-*.jsonl")):
        for entry in read_json_lines(path)[0]:
            place = entry.get("place")
            well = isinstance(place, list) and len(place) == 2 and all(isinstance(n, int) for n in place)
            if well and _results(entry):
                found[place[0], place[1]] = entry
    return dict(sorted(found.items()))


def _results(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Answers read off the page, of the first sample, budgets falling."""
    results = entry.get("results")
    kept = [
        r
        for r in (results if isinstance(results, list) else ())
        if isinstance(r, Mapping)
        and r.get("method") == "visual memory"
        and r.get("sample") == 0
        and whole(r.get("budget")) is not None
    ]
    return sorted(kept, key=lambda r: -r["budget"])


def _asked(entry: Mapping[str, Any]) -> tuple[str, str]:
    return text(entry.get("question")), text(_results(entry)[0].get("id"))


def _told(entry: Mapping[str, Any], pictures: PictureReader) -> Told:
    results = _results(entry)
    page = pictures.read(f"{text(results[0].get('page_hash'))}.png")
    answers = tuple(
        Answer(r["budget"], text(r.get("prediction")), (finite(r.get("em")) or 0) >= 1) for r in results
    )
    return Told(page, page and _shrunk(page, results[-1]["budget"]), answers)


def _shrunk(page: Picture, budget: int) -> Picture | None:
    """The page as it is read at a budget of visual tokens, by the function that every reader uses."""
    data = base64.b64decode(page.data_uri.partition(",")[2])
    try:
        with Image.open(io.BytesIO(data)) as image:
            view = fit(np.asarray(image.convert("RGB")), budget)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # no picture after all
        return None
    file = io.BytesIO()
    Image.fromarray(view).save(file, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(uri, view.shape[1], view.shape[0])


def _chart(sides: Mapping[str, list[Mapping[str, Any]]]) -> Chart | None:
    by_side: dict[str, dict[int, list[float]]] = {}
    for name, entries in sides.items():
        for result in (result for entry in entries for result in _results(entry)):
            score = finite(result.get("em"))
            if score is not None and result["budget"] > 0:
                by_side.setdefault(name, {}).setdefault(result["budget"], []).append(score)
    budgets = sorted({budget for scores in by_side.values() for budget in scores})
    if not budgets:
        return None
    series = [
        Series(label, tuple(_mean(by_side.get(name, {}).get(budget)) for budget in budgets), colour)
        for name, label, colour in ((BEFORE, "before", 7), (AFTER, "after", 0))
    ]
    return line_chart(
        "Accuracy against budget",
        budgets,
        series,
        note="exact match, share of the held-out questions; by visual tokens of the page",
        bounds=(0.0, 1.0),
        x_name="budget",
        doubling=True,
    )


def _mean(values: list[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
