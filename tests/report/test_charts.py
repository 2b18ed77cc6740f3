"""Chart geometry against positions worked out by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memocr_jax.report.charts import Series, line_chart, moving_average, nice_ticks, tick_text
from memocr_jax.report.values import short


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        # 9.7 / 4 = 2.4 -> steps of 2.5 from the multiple below 0.3 to the one above 10
        (0.3, 10.0, [0, 2.5, 5, 7.5, 10]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        # a flat line gets half its value to either side: 1..3 in steps of 0.5
        (2.0, 2.0, [1, 1.5, 2, 2.5, 3]),
        (0.0, 0.0, [-0.5, -0.25, 0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_always_enclose(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345, "12,345"),
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


def test_ticks_close_together_can_be_told_apart():
    ticks = [8.0195, 8.02, 8.0205]
    assert [tick_text(t, ticks) for t in ticks] == ["8.0195", "8.02", "8.0205"]
    assert [tick_text(t, [0, 0.25, 0.5]) for t in [0, 0.25, 0.5]] == ["0", "0.25", "0.5"]
    assert [tick_text(t, [0, 2500, 5000]) for t in [0, 2500, 5000]] == ["0", "2,500", "5,000"]
    assert [tick_text(t, [0, 2e-7, 4e-7]) for t in [0, 2e-7, 4e-7]] == ["0", "2e-07", "4e-07"]


def test_moving_average_is_centred_and_skips_what_is_missing():
    # half = 1: the ends keep their value (as many on both sides); beside the gap (1 + 3) / 2 and (8 + 4) / 2
    assert moving_average([1, 3, None, 8, 4], 1) == [1, 2, None, 6, 4]


def test_points_lie_where_their_values_are():
    chart = line_chart("t", [1, 2, 3], [Series("a", (0.0, None, 1.0))], bounds=(0, 1))
    # The axis runs from 0 (bottom) to 1 (top); step 1 is at the left edge, step 3 at the right one.
    assert chart.lines[0].raw == f"M{chart.left:.1f} {chart.bottom:.1f}M{chart.right:.1f} {chart.top:.1f}"
    assert chart.lines[0].last == "1"
    hover = json.loads(chart.hover)
    assert hover["heads"] == ["step 1", "step 2", "step 3"]
    assert hover["series"] == [{"label": "a", "colour": 0, "text": ["0", "–", "1"]}]


def test_one_step_is_a_dot_in_the_middle():
    chart = line_chart("t", [7], [Series("a", (0.5,))], bounds=(0, 1))
    middle = (chart.left + chart.right) / 2
    assert chart.lines[0].dots == ((middle, (chart.top + chart.bottom) / 2),)
    assert chart.x_ticks == ((middle, "7"),)


def test_doubling_steps_lie_equally_far_apart():
    chart = line_chart("t", [8, 16, 32], [Series("a", (0.0, 0.5, 1.0))], x_name="budget", doubling=True)
    middle = (chart.left + chart.right) / 2
    assert chart.x_ticks == ((chart.left, "8"), (middle, "16"), (chart.right, "32"))
    assert json.loads(chart.hover)["heads"][0] == "budget 8"


def test_nothing_to_draw_is_no_chart():
    assert line_chart("t", [1], [Series("a", (None,))]) is None
    assert line_chart("t", [], []) is None
