"""Charts: which values are drawn and how they are told in words."""

from __future__ import annotations

import re

import pytest

from memocr_jax.report.charts import Line, line_chart
from memocr_jax.report.values import ends, percent, short


def strokes(chart, colour=0):
    """The points of every stroke of a colour's lines, in the coordinates of the view box."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--c{colour}\)', chart.svg)
    parts = [part for path in paths for part in path.split("M")[1:]]
    return [[tuple(map(float, p.split())) for p in part.split("L")] for part in parts]


def markers(chart, colour=0):
    return len(re.findall(rf'<use [^>]*style="fill: var\(--c{colour}\)', chart.svg))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345, "12,345"),
        (2620.4, "2,620"),
        (1_234_567, "1.23M"),
        (0.5, "0.5"),
        (0.01234, "0.012"),
        (4.5e-7, "4.5e-07"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.2135, "21 %"), (0.0042, "0.4 %"), (0.997, "99.7 %"), (1, "100 %"), (None, "–")],
)
def test_per_cent_says_0_and_100_only_where_they_are_meant(share, text):
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == text


def test_ends_are_means_of_a_tenth():
    # Of 20 values a tenth is two: (0 + 1) / 2 and (18 + 19) / 2.
    assert ends(list(range(20))) == (0.5, 18.5)
    assert ends([3.0]) == (3.0, 3.0)


def test_points_lie_where_their_values_are():
    chart = line_chart("t", [1, 2, 4], [Line("a", [0.0, 0.5, 1.0])], low=0, high=1)
    ((first, middle, last),) = strokes(chart)
    assert last[0] - middle[0] == pytest.approx(2 * (middle[0] - first[0]), abs=0.01)
    assert first[1] - middle[1] == pytest.approx(middle[1] - last[1], abs=0.01)
    assert first[1] > last[1], "SVG counts from the top"
    assert chart.legend == [(None, "", "0 → 1")]


def test_budgets_that_double_lie_equally_far_apart_and_have_their_ticks():
    chart = line_chart("t", [2, 8, 32], [Line("a", [0.2, 0.5, 1.0])], doubling=True)
    ((first, middle, last),) = strokes(chart)
    assert last[0] - middle[0] == pytest.approx(middle[0] - first[0], abs=0.01)
    assert [text for text in ("2", "8", "32") if f">{text}</text>" in chart.svg] == ["2", "8", "32"]


def test_a_missing_value_is_a_gap_not_zero():
    chart = line_chart("t", [1, 2, 3, 4, 5], [Line("a", [0.5, 0.6, None, 0.7, 0.8])], low=0, high=1)
    assert [len(stroke) for stroke in strokes(chart)] == [2, 2]
    assert markers(chart) == 4


def test_a_few_values_among_many_steps_are_one_line_with_markers():
    """The chart of the validation was blank: a line lifted its pen at each of its gaps."""
    values = [step / 300 if step % 50 == 0 else None for step in range(1, 301)]
    chart = line_chart("Validation", range(1, 301), [Line("a", values), Line("b", values, 1)], share=True)
    for colour in (0, 1):
        assert [len(stroke) for stroke in strokes(chart, colour)] == [6]
        assert markers(chart, colour) == 6
    assert chart.legend[1] == (1, "b", "17\N{NO-BREAK SPACE}% → 100\N{NO-BREAK SPACE}%")


def test_many_values_have_a_smooth_line_over_the_raw_one_and_no_markers():
    chart = line_chart("t", range(100), [Line("a", [i % 2 for i in range(100)])])
    raw, smooth = strokes(chart)
    heights = [max(y for _, y in line[20:-20]) - min(y for _, y in line[20:-20]) for line in (raw, smooth)]
    assert heights[1] < 0.3 * heights[0] and markers(chart) == 0


def test_a_flat_line_and_a_single_step_are_charts_too():
    assert ">7</text>" in line_chart("t", [7], [Line("a", [0.5])], low=0, high=1).svg
    assert line_chart("t", [1, 2], [Line("a", [0.0, 0.0])], low=0).svg


def test_the_style_sheet_has_the_colours_and_the_page_the_text():
    chart = line_chart("<title>", [1, 2], [Line("<label>", [1.0, 2.0]), Line("b", [2.0, 1.0], 9)])
    assert not re.search(r"#[0-9a-f]{6}|http|<style|<title>|<label>|<metadata", chart.svg)
    assert "var(--c0)" in chart.svg and "var(--c1)" in chart.svg and "var(--dim)" in chart.svg
    assert not re.findall(r' id="\w+_\d+"', chart.svg), "names that another chart of the page has too"


def test_nothing_to_draw_is_no_chart():
    assert line_chart("t", [1], [Line("a", [None])]) is None
    assert line_chart("t", [], []) is None
