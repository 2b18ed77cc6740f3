"""The summary as tables in the paper's form (arXiv 2601.21468, table 1).

Rows are method x budget, columns data set x length and the average; accuracy in per cent, with its change
against the largest budget.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memocr_jax.evaluation.summary import METRIC_NAMES, METRICS, in_order

if TYPE_CHECKING:
    import rich.table

AVERAGE = "average"

Score = Mapping[str, float | None]
"""{mean, low, high, drop}"""


@dataclasses.dataclass(frozen=True)
class Table:
    """One metric of a summary."""

    metric: str
    columns: tuple[tuple[str, str], ...]
    """(data set or "average", length)"""
    rows: tuple[tuple[str, int | None, tuple[Score | None, ...]], ...]
    """(method, budget, a score for each column)"""
    notes: tuple[tuple[str, tuple[str, ...]], ...]
    """Further rows: a name, and a text for each column."""

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _, _ in self.rows))

    @property
    def budgets(self) -> list[int]:
        """All budgets, rising."""
        return sorted({budget for _, budget, _ in self.rows if budget is not None})

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.columns))

    @property
    def lengths(self) -> list[str]:
        return list(dict.fromkeys(length for _, length in self.columns))

    def scores(self, method: str, name: str, length: str) -> dict[int | None, Score]:
        """A method's scores in one column, by budget; empty where there is no such column."""
        if (name, length) not in self.columns:
            return {}
        column = self.columns.index((name, length))
        return {budget: row[column] for m, budget, row in self.rows if m == method and row[column]}


def paper_table(summary: Mapping[str, Any], metric: str) -> Table:
    """The table of one metric of `METRICS`; averages are there when a length has several data sets."""
    scores: dict[tuple[str, str], dict[tuple[str, int | None], Score]] = {}
    for cell in summary["cells"]:
        column = scores.setdefault((cell["dataset"], cell["length"]), {})
        column[cell["method"], cell["budget"]] = cell[metric]
    for average in summary["averages"]:
        if average["datasets"] > 1:
            column = scores.setdefault((AVERAGE, average["length"]), {})
            column[average["method"], average["budget"]] = average[metric]
    # As in the paper: a data set's lengths side by side.
    names = list(dict.fromkeys(name for name, _ in scores))
    columns = tuple(sorted(scores, key=lambda column: (column[0] == AVERAGE, names.index(column[0]))))
    rows = tuple(
        (method, budget, tuple(scores[column].get((method, budget)) for column in columns))
        for method, budget in in_order({cell: None for column in columns for cell in scores[column]})
    )
    told = {(one["dataset"], one["length"]): one for one in summary.get("sets", ())}
    notes = []
    for name, field in (("questions", "questions"), ("rows left out", "left_out"), ("not read", "failed")):
        texts = [str(told[c][field]) if c in told and field in told[c] else "" for c in columns]
        if any(texts):
            notes.append((name, tuple(texts)))
    if any("raw_history" in one for one in told.values()):
        raw = [told[c].get("raw_history") if c in told else None for c in columns]
        notes.append(
            ("raw history, documents cut", tuple("" if r is None else str(r["documents_cut"]) for r in raw))
        )
        notes.append(
            ("raw history, tokens given", tuple("" if r is None else f"{r['given_tokens']:.0f}" for r in raw))
        )
    return Table(metric, columns, rows, tuple(notes))


def markdown(summary: Mapping[str, Any]) -> str:
    """All metrics, each with its intervals."""
    parts = []
    for metric in METRICS:
        table = paper_table(summary, metric)
        head = ["method", "budget", *(f"{_md(name)} {_md(length)}" for name, length in table.columns)]
        parts += [f"## {METRIC_NAMES[metric]}, %", ""]
        parts += _md_table(head, table, _with_drop)
        if any(score and score["low"] is not None for _, _, row in table.rows for score in row):
            parts += ["", f"### {METRIC_NAMES[metric]}, %, 95 % interval", ""]
            parts += _md_table(head, dataclasses.replace(table, notes=()), interval)
        parts.append("")
    parts += ["In brackets: change against the method's largest budget.", ""]
    return "\n".join(parts)


def _md_table(head: Sequence[str], table: Table, show: Any) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * 2 + "|---:" * len(table.columns) + "|"]
    for method, budget, row in table.rows:
        cells = [_md(method), _budget(budget), *map(show, row)]
        lines.append("| " + " | ".join(cells) + " |")
    for name, texts in table.notes:
        lines.append("| " + " | ".join([f"*{name}*", "", *texts]) + " |")
    return lines


def comma_separated(summary: Mapping[str, Any]) -> str:
    """All metrics in full precision: a row for each metric, method and budget; for each column the mean,
    the interval's ends and the relative change (fractions, not per cent)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    tables = [paper_table(summary, metric) for metric in METRICS]
    head = ["metric", "method", "budget"]
    for name, length in tables[0].columns:
        head += [f"{name} {length}{part}" for part in ("", " low", " high", " change")]
    writer.writerow(head)
    for table in tables:
        for method, budget, row in table.rows:
            cells = [table.metric, method, "" if budget is None else budget]
            for score in row:
                values = [None] * 4 if score is None else [score[k] for k in ("mean", "low", "high", "drop")]
                cells += ["" if value is None else f"{value:.6g}" for value in values]
            writer.writerow(cells)
    for name, texts in tables[0].notes:
        writer.writerow([name, "", "", *(cell for text in texts for cell in (text, "", "", ""))])
    return out.getvalue()


def latex(summary: Mapping[str, Any]) -> str:
    """A tabular for each metric, for booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for metric in METRICS:
        table = paper_table(summary, metric)
        groups: dict[str, int] = {}
        for name, _ in table.columns:
            groups[name] = groups.get(name, 0) + 1
        parts += [
            f"% {METRIC_NAMES[metric]}, per cent (in small type: change against the largest budget)",
            "\\begin{tabular}{ll" + "r" * len(table.columns) + "}",
            "\\toprule",
            "Method & Budget & "
            + " & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}" for name, n in groups.items())
            + " \\\\",
            " & & " + " & ".join(_tex(length) for _, length in table.columns) + " \\\\",
            "\\midrule",
        ]
        previous = None
        for method, budget, row in table.rows:
            if previous not in (None, method):
                parts.append("\\midrule")
            cells = [_tex(method) if method != previous else "", _budget(budget, "--"), *map(_tex_score, row)]
            parts.append(" & ".join(cells) + " \\\\")
            previous = method
        if table.notes:
            parts.append("\\midrule")
            for name, texts in table.notes:
                parts.append(" & ".join([_tex(name), "", *map(_tex, texts)]) + " \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(parts)


def console_table(summary: Mapping[str, Any], metric: str = "em") -> rich.table.Table:
    """One metric for the terminal; with its intervals when there are few columns."""
    from rich.table import Table as RichTable

    table = paper_table(summary, metric)
    narrow = len(table.columns) > 3
    title = f"{METRIC_NAMES[metric]}, %" + ("" if narrow else ", 95 % interval")
    shown = RichTable(title=title)
    shown.add_column("method", no_wrap=True)
    shown.add_column("budget", justify="right", no_wrap=True)
    for name, length in table.columns:
        shown.add_column(f"{name}\n{length}", justify="right", overflow="fold")
    for method, budget, row in table.rows:
        cells = (_mean(score) + ("" if narrow else f"  {interval(score)}") for score in row)
        shown.add_row(method, _budget(budget), *(cell.strip() for cell in cells))
    for name, texts in table.notes:
        shown.add_row(name, "", *texts, style="dim")
    return shown


def _budget(budget: int | None, none: str = "–") -> str:
    return none if budget is None else str(budget)


def percent(value: float | None) -> str:
    """A share in per cent, with one decimal and without the sign."""
    return "–" if value is None else f"{100 * value:.1f}"


def _mean(score: Score | None) -> str:
    return "–" if score is None else percent(score["mean"])


def _with_drop(score: Score | None) -> str:
    if score is None or not score["drop"]:
        return _mean(score)
    return f"{_mean(score)} ({change(score['drop'])} %)"


def interval(score: Score | None) -> str:
    """A score's 95 % interval in per cent, or nothing."""
    if score is None or score["low"] is None:
        return ""
    return f"{percent(score['low'])}–{percent(score['high'])}"


def change(drop: float) -> str:
    """A relative change in per cent, signed."""
    return f"{100 * drop:+.1f}".replace("-", "\N{MINUS SIGN}")


def _tex_score(score: Score | None) -> str:
    if score is None:
        return "--"
    drop = "" if not score["drop"] else f" {{\\scriptsize ${100 * score['drop']:+.1f}$}}"
    return percent(score["mean"]) + drop


def _md(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(text.split()))


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
