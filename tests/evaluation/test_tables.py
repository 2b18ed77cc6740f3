"""The tables that are for papers and spreadsheets."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from memocr_jax.evaluation import plots, tables
from memocr_jax.evaluation.summary import METRICS, summarise


@pytest.fixture
def result(by_hand):
    return by_hand.result


def test_markdown_is_the_papers_table(evaluation):
    text = tables.markdown(evaluation.summary)
    head, rule, *rows = text.split("## Exact match, %\n\n")[1].split("\n\n")[0].splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[2:] == ["hotpotqa 10k", "hotpotqa 30k", "nq 10k", "nq 30k", "average 10k", "average 30k"]
    assert all(len(row.strip("|").split("|")) == len(columns) for row in (rule, *rows))
    cells = {tuple(c.strip() for c in row.strip("|").split("|")[:2]): row for row in rows}
    assert "| 100.0 |" in cells["visual memory", "512"]
    assert "75.0 (−25.0 %)" in cells["visual memory", "64"]
    assert ("raw history", "–") in cells
    # Rows of the data that were left out, and answers that failed, are a part of the table.
    assert cells["*rows left out*", ""].split("|")[3].strip() == "2"
    assert cells["*not read*", ""].split("|")[3].strip() == "6"
    # How much raw history was given of its documents.
    assert cells["*raw history, documents cut*", ""].split("|")[3:5] == [" 8 ", " 8 "]
    assert cells["*raw history, tokens given*", ""].split("|")[3].strip() == "9000"
    assert text.count("95 % interval") == len(METRICS)


def test_csv_has_the_exact_numbers(evaluation):
    rows = list(csv.DictReader(io.StringIO(tables.comma_separated(evaluation.summary))))
    by_place = {(r["metric"], r["method"], r["budget"]): r for r in rows}
    assert len(by_place) == len(METRICS) * 10 + 5
    row = by_place["em", "visual memory", "8"]
    assert (float(row["hotpotqa 30k"]), float(row["hotpotqa 30k change"])) == (0.25, -0.75)
    assert float(row["hotpotqa 30k low"]) <= 0.25 <= float(row["hotpotqa 30k high"])
    assert by_place["rows left out", "", ""]["hotpotqa 10k"] == "2"


def test_latex_balances_and_escapes(result):
    summary = summarise([result(dataset="a_b & c%", method="m#1", budget=b) for b in (64, 8)], resamples=0)
    text = tables.latex(summary)
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 3
    assert r"a\_b \& c\%" in text and r"m\#1" in text
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.count("&") - line.count("\\&") for line in body} == {2}


def test_names_do_not_break_markdown(result):
    text = tables.markdown(summarise([result(dataset="a|b\n*c*")], resamples=0))
    assert r"a\|b \*c\* 10k" in text


def test_the_terminal_shows_intervals_where_there_is_room(evaluation, result):
    def shown(summary):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(tables.console_table(summary))
        return console.export_text()

    assert "rows left out" in shown(evaluation.summary)
    assert "–" in shown(summarise([result(), result(id="b", em=0.0)])).split("64")[1]


@pytest.mark.parametrize("draw", [plots.by_budget, plots.by_length])
def test_plots_are_svg_and_reproducible(evaluation, draw):
    text = plots.svg(draw(evaluation.summary, "em"))
    assert text == plots.svg(draw(evaluation.summary, "em"))
    ET.fromstring(text)
    written = evaluation.directory / "plots" / f"em_{draw.__name__}.svg"
    assert written.read_text() == text


def test_plots_have_a_line_for_each_method(evaluation):
    axes = plots.by_budget(evaluation.summary, "em").axes
    assert len(axes) == 6
    for axis in axes:
        assert axis.get_legend_handles_labels()[1] == [
            *("visual memory", "visual without layout", "text memory", "raw history")
        ]
    ((line,),) = [[one for one in axes[1].lines if one.get_label() == "visual memory"]]
    assert list(line.get_xdata()) == [8, 64, 512] and list(line.get_ydata()) == [25, 75, 100]


def test_there_is_nothing_to_plot_without_budgets_or_with_one_length(result):
    raw = summarise([result(method="raw history", budget=None)])
    assert plots.by_budget(raw, "em") is None and plots.by_length(raw, "em") is None
