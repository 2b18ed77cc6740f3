"""`report.html` of an evaluation: one file with every question, its answers, and its pages at each budget.

Everything that comes from data or from a model is untrusted: the page's script shows it as text, never as
markup, and the page's own policy forbids every request and every script but the one it carries.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from memocr_jax.config import EvalConfig
from memocr_jax.evaluation.journal import PAGES, Place
from memocr_jax.evaluation.summary import METRIC_NAMES
from memocr_jax.evaluation.tables import AVERAGE, paper_table, percent
from memocr_jax.report.charts import Chart, Series, line_chart
from memocr_jax.report.page import UNSAFE_CHARACTERS, environment
from render.files import write_atomically
from render.views import fit

TEXT_CHARS = 6000
"""A longer memory or answer loses its middle."""
QUESTION_CHARS = 2000


def write_page(
    directory: Path,
    entries: Mapping[Place, Mapping[str, Any]],
    summary: Mapping[str, Any],
    settings: EvalConfig,
) -> Path:
    """Write `<directory>/report.html`; returns its path.

    All questions are in it; memories, whole answers and pages are those of the first
    `settings.report_questions` of each set, pages up to `settings.report_mb`.
    """
    views = _Views(directory / PAGES, settings.report_mb * 2**20)
    shown: dict[Place, list[int | None]] = {}
    # The first questions of every set before the second ones, should the pages not all fit.
    for place in sorted(entries, key=lambda place: (place[1], place[0])):
        if not settings.report_questions or place[1] < settings.report_questions:
            shown[place] = [views.place(result) for result in entries[place]["results"]]
    data = {
        "methods": list(settings.methods),
        "budgets": list(settings.budgets),
        "rows": [
            row
            for place, entry in entries.items()
            for row in _rows(entry, shown.get(place), place[0], place[1])
        ],
        "views": [dataclasses.astuple(view) for view in views.all],
    }
    notes = []
    if views.left_out:
        notes.append(f"{views.left_out} views left out: more than {settings.report_mb} MiB in all")
    if len(shown) < len(entries):
        notes.append(
            f"memories and pages are shown for the first {settings.report_questions} questions of each set"
        )
    assets = resources.files("memocr_jax") / "report" / "assets"
    own = resources.files("memocr_jax") / "evaluation" / "assets"
    style = _text(assets / "report.css") + _text(own / "evaluation.css")
    script = _text(assets / "report.js") + _text(own / "evaluation.js")
    html = (
        environment(TEXT_CHARS, "memocr_jax.evaluation")
        .get_template("evaluation.html")
        .render(
            name=directory.resolve().parent.name + " / " + directory.resolve().name,
            summary=summary,
            charts=_charts(summary),
            table=paper_table(summary, "em"),
            percent=percent,
            notes=notes,
            metrics=METRIC_NAMES,
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            data=Markup(_json(data)),
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    path = directory / "report.html"
    write_atomically(path, html)
    return path


def _text(file: Any) -> str:
    return file.read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that may stand inside <script>: no character of it can end the element or the string."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rows(
    entry: Mapping[str, Any], views: Sequence[int | None] | None, s: int, i: int
) -> list[dict[str, Any]]:
    """A row for each sample of a question, in short names; results are arrays, see evaluation.js."""
    rows: dict[int, dict[str, Any]] = {}
    for k, result in enumerate(entry["results"]):
        sample = result["sample"]
        if sample not in rows:
            rows[sample] = {
                "o": [s, i, sample],
                "d": _clean(result["dataset"]),
                "l": _clean(result["length"]),
                "id": _clean(result["id"]),
                "q": _clip(entry["question"], QUESTION_CHARS),
                "a": [_clip(answer, QUESTION_CHARS) for answer in result["answers"][:20]],
                "n": entry["document_tokens"],
                "r": [],
            }
            if views is not None:
                memories = entry["memories"]
                rows[sample]["m"] = _clip(memories[sample], TEXT_CHARS) if memories else None
        rows[sample]["r"].append(
            [
                result["method"],
                result["budget"],
                _clip(result["prediction"], QUESTION_CHARS),
                result["em"],
                round(result["f1"], 4),
                result["sub_em"],
                result["status"],
                result["image_tokens"],
                None if views is None else views[k],
                None if views is None else _clip(entry["texts"][k], TEXT_CHARS),
                entry["shown_tokens"][k],
                _clean(entry["pages"].get(result["page_hash"], {}).get("detail", "")),
            ]
        )
    return list(rows.values())


def _clean(text: str) -> str:
    return UNSAFE_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)


def _clip(text: str | None, chars: int) -> str | None:
    if text is None:
        return None
    text = _clean(text)
    keep = chars // 2
    if len(text) <= chars:
        return text
    return f"{text[:keep]}\n[… {len(text) - 2 * keep:,} characters left out …]\n{text[-keep:]}"


@dataclasses.dataclass(frozen=True)
class _View:
    data: str
    """data: URL"""
    width_px: int
    height_px: int


class _Views:
    """The pages as the model saw them, each once, until a number of bytes is used up; then no more."""

    def __init__(self, folder: Path, max_bytes: int):
        self.all: list[_View] = []
        self.left_out = 0
        self._full = False
        self._folder, self._bytes_left = folder, max_bytes
        self._known: dict[tuple[str, tuple[int, ...]], int | None] = {}
        self._page: tuple[str, np.ndarray | None] = ("", None)

    def place(self, result: Mapping[str, Any]) -> int | None:
        """Where in `all` the view of a result is; None when there is none to show."""
        if result["image_tokens"] is None:
            return None
        if self._full:
            self.left_out += 1
            return None
        pixels = self._pixels(result["page_hash"])
        if pixels is None:
            return None
        view = fit(pixels, result["budget"])
        key = (result["page_hash"], view.shape)
        if key not in self._known:
            self._known[key] = self._add(view)
        return self._known[key]

    def _pixels(self, content_hash: str) -> np.ndarray | None:
        if self._page[0] != content_hash:
            path = self._folder / f"{content_hash}.png"
            pixels = None
            if path.is_file():
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
            self._page = (content_hash, pixels)
        return self._page[1]

    def _add(self, view: np.ndarray) -> int | None:
        out = io.BytesIO()
        # Lossless: what is looked at is what the model saw. Most pages are black on white.
        if (view == view[:, :, :1]).all():
            Image.fromarray(view[:, :, 0]).save(out, format="PNG")
        else:
            Image.fromarray(view).save(out, format="PNG", compress_level=9)
        if len(out.getvalue()) > self._bytes_left:
            self._full = True
            self.left_out += 1
            return None
        self._bytes_left -= len(out.getvalue())
        data = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        self.all.append(_View(data, view.shape[1], view.shape[0]))
        return len(self.all) - 1


def _charts(summary: Mapping[str, Any]) -> list[Chart]:
    """Exact match against budget for each length, averaged over its data sets; a line for each method."""
    table = paper_table(summary, "em")
    budgets = sorted({budget for _, budget, _ in table.rows if budget})
    names = {name for name, _ in table.columns}
    charts = []
    for column, (name, length) in enumerate(table.columns):
        if AVERAGE in names and name != AVERAGE and (AVERAGE, length) in table.columns:
            continue
        series = []
        for colour, method in enumerate(dict.fromkeys(method for method, _, _ in table.rows)):
            means = {b: row[column]["mean"] for m, b, row in table.rows if m == method and row[column]}
            values = [means.get(budget, means.get(None)) for budget in budgets]
            series.append(Series(method, tuple(values), colour))
        chart = budgets and line_chart(
            f"{name}, {length}",
            budgets,
            series,
            note="exact match by budget in tokens",
            bounds=(0.0, 1.0),
            x_name="budget",
            doubling=True,
        )
        if chart:
            charts.append(chart)
    return charts
