"""The report of an evaluation: its accuracies, and every question with its answers at each budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memocr_jax.config import EvalConfig
from memocr_jax.evaluation.journal import PAGES, Place
from memocr_jax.evaluation.plots import method_colour
from memocr_jax.evaluation.summary import READ
from memocr_jax.evaluation.tables import AVERAGE, Table, interval, paper_table
from memocr_jax.evaluation.tables import percent as per_cent
from memocr_jax.report.charts import Chart, Line, line_chart
from memocr_jax.report.page import render_page
from memocr_jax.report.pictures import Picture, Pictures
from memocr_jax.report.values import percent
from render.files import write_atomically


@dataclasses.dataclass(frozen=True)
class AccuracyTable:
    """What the section on accuracy shows."""

    sentence: str
    """The result."""
    charts: Sequence[Chart]
    columns: Sequence[tuple[str, str]]
    """(data set or "average", length)"""
    rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
    """(method, budget, (mean, 95 % interval) for each column)"""
    notes: Sequence[tuple[str, Sequence[str]]]
    """Further rows: a name, and a text for each column."""
    folded: Sequence[tuple[str, str]]
    """(title, text) of what was left out or failed."""


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
    """One answer, with all budgets that showed the reader the same view."""

    budgets: str
    outcome: str
    """yes, no, or none where nothing could be read or scored."""
    result: Mapping[str, Any]
    picture: Picture | None
    text: str | None
    """The model's whole answer, where it is shown."""
    shown_tokens: int | None
    detail: str


@dataclasses.dataclass(frozen=True)
class ShownQuestion:
    """A question and one of its samples."""

    number: str
    first: Mapping[str, Any]
    """Any of its results: data set, length, id and accepted answers."""
    question: str
    document_tokens: int
    memory: str | None
    methods: Mapping[str, Sequence[ShownAnswer]]
    marks: Mapping[str, Sequence[tuple[str, str]]]
    """For each method (budget, outcome) of each answer."""

    @property
    def kinds(self) -> str:
        """The values of the page's filter: every outcome as "METHOD at BUDGET: OUTCOME", and summaries."""
        outcomes = [outcome for marks in self.marks.values() for _, outcome in marks]
        kinds = [
            f"{method} at {budget}: {outcome}"
            for method, marks in self.marks.items()
            for budget, outcome in marks
        ]
        right = outcomes.count("yes")
        kinds.append("right" if right == len(outcomes) else "mixed" if right else "wrong")
        return "|".join([*kinds, *(["failed"] if "none" in outcomes else [])])


def read_scores(summary: Mapping[str, Any]) -> AccuracyTable:
    """Lay out a summary (memocr_jax.evaluation.summary); LookupError, TypeError or the like if it is none."""
    table = paper_table(summary, "em")
    folded = [
        (f"{one['left_out']} rows left out of {one['dataset']} {one['length']}", "\n".join(one["problems"]))
        for one in summary.get("sets", ())
        if one["problems"]
    ]
    if failures := summary.get("failures"):
        folded.append((f"{len(failures)} not read or not scored (counted as wrong)", "\n".join(failures)))
    return AccuracyTable(
        _sentence(summary, table),
        _charts(table),
        table.columns,
        [
            (method, _budget(budget), [(f"{per_cent(s['mean'])} %" if s else "–", interval(s)) for s in row])
            for method, budget, row in table.rows
        ],
        table.notes,
        folded,
    )


def write_evaluation(
    directory: Path,
    entries: Mapping[Place, Mapping[str, Any]],
    summary: Mapping[str, Any],
    settings: EvalConfig,
) -> Path:
    """Write `<directory>/report.html`; returns its path.

    All questions are in it; memories, whole answers and pages are those of the first
    `settings.report_questions` of each set, pages up to `settings.report_mb`.
    """
    pictures = Pictures(directory / PAGES, settings.report_mb * 2**20)
    many = any(result["sample"] for entry in entries.values() for result in entry["results"])
    shown: dict[Place, list[ShownQuestion]] = {}
    # The first questions of every set before the second ones, should the pages not all fit.
    for place in sorted(entries, key=lambda place: (place[1], place[0])):
        whole = not settings.report_questions or place[1] < settings.report_questions
        shown[place] = _entries(entries[place], place[1], many, pictures if whole else None)
    notes = []
    if pictures.left_out:
        notes.append(f"{pictures.left_out} views left out: more than {settings.report_mb} MiB in all")
    if settings.report_questions and any(i >= settings.report_questions for _, i in entries):
        notes.append(
            f"memories and pages are shown for the first {settings.report_questions} questions of each set"
        )
    name = directory.resolve()
    scores = read_scores(summary)
    page = render_page(
        6000,
        title=f"{name.parent.name} / {name.name}",
        kind="evaluation",
        sentence=scores.sentence,
        notes=notes,
        facts=_facts(summary),
        scores=scores,
        entries=[entry for place in sorted(shown) for entry in shown[place]],
    )
    path = directory / "report.html"
    write_atomically(path, page)
    return path


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Facts about the evaluation: (name, value, small print)."""
    step, samples = summary["checkpoint"], summary["samples"]
    sampled = f"temperature {summary['temperature']:g}, top-p {summary['top_p']:g}"
    return [
        ("Weights", summary["weights"] + ("" if step is None else f", step {step:,}"), ""),
        ("Memories", f"{samples} a question", ""),
        ("Sampling", sampled if summary["temperature"] else "greedy", ""),
    ]


def _entries(entry: Mapping[str, Any], i: int, many: bool, pictures: Pictures | None) -> list[ShownQuestion]:
    """A question, once for each of its samples."""
    by_sample: dict[int, dict[str, list[int]]] = {}
    for k, result in enumerate(entry["results"]):
        by_sample.setdefault(result["sample"], {}).setdefault(result["method"], []).append(k)
    return [
        ShownQuestion(
            number=f"{i + 1}.{sample + 1}" if many else str(i + 1),
            first=entry["results"][0],
            question=entry["question"],
            document_tokens=entry["document_tokens"],
            memory=entry["memories"][sample] if pictures and entry["memories"] else None,
            methods={method: _readings(entry, places, pictures) for method, places in methods.items()},
            marks={
                method: [
                    (_budget(entry["results"][k]["budget"]), _outcome(entry["results"][k])) for k in places
                ]
                for method, places in methods.items()
            },
        )
        for sample, methods in by_sample.items()
    ]


def _readings(
    entry: Mapping[str, Any], places: Sequence[int], pictures: Pictures | None
) -> list[ShownAnswer]:
    readings: list[ShownAnswer] = []
    for k in places:
        result = entry["results"][k]
        picture = None
        if pictures and result["image_tokens"] is not None:
            picture = pictures.view(f"{result['page_hash']}.png", result["budget"])
        if picture and readings and readings[-1].picture is picture:
            last = readings[-1]
            readings[-1] = dataclasses.replace(last, budgets=f"{last.budgets}, {_budget(result['budget'])}")
            continue
        page = entry["pages"].get(result["page_hash"], {})
        text = entry["texts"][k] if pictures else None
        shown_tokens, detail = entry["shown_tokens"][k], page.get("detail", "")
        readings.append(
            ShownAnswer(
                _budget(result["budget"]), _outcome(result), result, picture, text, shown_tokens, detail
            )
        )
    return readings


def _budget(budget: int | None) -> str:
    return "no budget" if budget is None else f"{budget:,}"


def _outcome(result: Mapping[str, Any]) -> str:
    return "none" if result["status"] not in READ else "yes" if result["em"] >= 0.5 else "no"


def _sentence(summary: Mapping[str, Any], table: Table) -> str:
    """The first method's accuracy at its largest and smallest budget, mean over the sets."""
    method = table.methods[0]
    by_set = [table.scores(method, name, length) for name, length in table.columns if name != AVERAGE]
    budgets = [budget for m, budget, _ in table.rows if m == method]
    most, least = (
        percent(float(np.mean([scores[budget]["mean"] for scores in by_set if budget in scores])))
        for budget in (budgets[0], budgets[-1])
    )
    told = f"With {method}, {most} of {summary['questions']:,} questions are answered right"
    if budgets[0] is not None:
        told += f" at {budgets[0]:,} tokens"
    if len(budgets) > 1:
        told += f", and {least} at {budgets[-1]:,}"
    return f"{told} (mean of the sets)." if len(summary.get("sets", ())) > 1 else f"{told}."


def _charts(table: Table) -> list[Chart]:
    """Right answers against budget for each length, averaged over its data sets; a line for each method."""
    averaged = {length for name, length in table.columns if name == AVERAGE}
    charts = []
    for name, length in table.columns:
        if not table.budgets or (name != AVERAGE and length in averaged):
            continue
        lines, legend = [], []
        for i, method in enumerate(table.methods):
            if scores := {b: score["mean"] for b, score in table.scores(method, name, length).items()}:
                # A method without a budget is a level line.
                values = [scores.get(budget, scores.get(None)) for budget in table.budgets]
                lines.append(Line(method, values, method_colour(method, i)))
                reached = [percent(s) + ("" if b is None else f" at {b:,}") for b, s in scores.items()]
                legend.append((lines[-1].colour, method, ", ".join(dict.fromkeys([reached[0], reached[-1]]))))
        chart = line_chart(
            f"{name}, {length}",
            table.budgets,
            lines,
            note="share of right answers, by budget in tokens",
            share=True,
            low=0,
            high=1,
            doubling=True,
            legend=legend,
        )
        if chart:
            charts.append(chart)
    return charts
