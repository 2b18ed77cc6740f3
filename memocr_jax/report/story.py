"""The story of a run: the same held-out questions before and after training.

Two evaluations are compared, `<run>/evaluation_before` and `<run>/evaluation` (`memocr_jax.story` leaves
both). Which questions are shown is not chosen: they are the first ones that both evaluations have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memocr_jax.evaluation.journal import PAGES, Journal
from memocr_jax.report.charts import Chart, Line, line_chart
from memocr_jax.report.pictures import Picture, Pictures
from memocr_jax.report.values import percent, texts

BEFORE = "evaluation_before"
AFTER = "evaluation"
QUESTIONS = 4
"""Questions shown."""
METHOD = "visual memory"

Result = Mapping[str, Any]
"""One answer, as the evaluation's journal has it."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A question before or after: its page, the page at the lowest budget, and the answers by budget."""

    name: str
    page: Picture | None
    small: Picture | None
    results: Sequence[Result]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same question before and after."""

    question: str
    answers: Sequence[str]
    sides: tuple[Side, Side]


@dataclasses.dataclass(frozen=True)
class Story:
    sentence: str
    """The result."""
    chart: Chart
    """Accuracy against budget, before and after."""
    questions: int
    pairs: Sequence[Pair]


def read_story(run_dir: Path, steps: int, image_mb: int) -> Story | None:
    """The story of a run; None unless both evaluations are there with the same questions.

    Args:
        steps: steps of training between the two.
        image_mb: size of all pictures at most.
    """
    folders = {name: run_dir / name for name in (BEFORE, AFTER)}
    entries = {name: Journal(folder).finished() for name, folder in folders.items()}
    same = [
        place for place, entry in entries[AFTER].items() if place in entries[BEFORE] and first_results(entry)
    ]
    if not same or any(_asked(entries[BEFORE][place]) != _asked(entries[AFTER][place]) for place in same):
        return None
    pictures = {name: Pictures(f / PAGES, image_mb * 2**20 // 2) for name, f in folders.items()}
    pairs = []
    for place in same[:QUESTIONS]:
        sides = [
            _side(label, first_results(entries[name][place]), pictures[name])
            for name, label in ((BEFORE, "before"), (AFTER, "after"))
        ]
        entry = entries[AFTER][place]
        pairs.append(Pair(entry["question"], texts(first_results(entry)[0]["answers"]), tuple(sides)))
    before, after = (_accuracy([entries[name][place] for place in same]) for name in (BEFORE, AFTER))
    least = min(after)
    return Story(
        f"After {steps:,} steps of training, {percent(after[least])} of {len(same):,} held-out questions are "
        f"answered right from a page of {least:,} visual tokens; before training it was "
        f"{percent(before.get(least))}.",
        _chart(before, after),
        len(same),
        pairs,
    )


def first_results(entry: Mapping[str, Any]) -> list[Result]:
    """Answers of a question's first sample that were read from its page, from the largest budget down."""
    kept = [r for r in entry["results"] if r["method"] == METHOD and r["sample"] == 0]
    return sorted(kept, key=lambda r: -r["budget"])


def _asked(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return (entry["question"], *(r["id"] for r in first_results(entry)[:1]))


def _side(name: str, results: Sequence[Result], pictures: Pictures) -> Side:
    file = f"{results[0]['page_hash']}.png"
    page = pictures.file(file)
    return Side(name, page, page and pictures.view(file, results[-1]["budget"]), results)


def _accuracy(entries: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Share of right answers by budget, budgets rising."""
    scores: dict[int, list[float]] = {}
    for result in (result for entry in entries for result in first_results(entry)):
        scores.setdefault(result["budget"], []).append(result["em"])
    return {budget: sum(scores[budget]) / len(scores[budget]) for budget in sorted(scores)}


def _chart(before: Mapping[int, float], after: Mapping[int, float]) -> Chart:
    budgets = sorted({*before, *after})
    sides = (("before", before, 7), ("after", after, 0))
    return line_chart(
        "Right answers by budget",
        budgets,
        [Line(label, [side.get(budget) for budget in budgets], colour) for label, side, colour in sides],
        note="share of the held-out questions, by visual tokens of the page",
        share=True,
        low=0,
        high=1,
        doubling=True,
        legend=[
            *((colour, label, "") for label, _, colour in sides),
            *(
                (
                    None,
                    f"at {budget:,} tokens:",
                    f"{percent(before.get(budget))} → {percent(after.get(budget))}",
                )
                for budget in budgets
            ),
        ],
    )
