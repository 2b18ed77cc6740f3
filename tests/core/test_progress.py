"""One bar for every command says what is done, how long it took, what is left, and the stage."""

import io

import pytest
from rich.console import Console

from memocr_jax.core.progress import ProgressBar, duration


def shown(*, terminal=True, **options):
    """The output of a bar of four questions on a terminal."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with ProgressBar("questions [a]", 4, console=console, **options) as bar:
        bar.stage("draft", 3, 8)
        bar.update(1, left="0:01:05")
        bar.say("one [b] is done")
    return console.file.getvalue()


def test_count_time_left_stage_and_lines_above():
    text = shown()
    for words in ("questions [a]", "1/4", "25%", "left 0:01:05", "draft 3/8", "one [b] is done"):
        assert words in text


def test_nothing_is_shown_where_another_process_shows_it():
    assert "questions" not in shown(shown=False) and "done" not in shown(shown=False)


def test_lines_are_shown_without_a_terminal():
    assert "one [b] is done" in shown(terminal=False)


def test_bytes_have_a_unit():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with ProgressBar("export", console=console, size=True) as bar:
        bar.update(2_000_000, 4_000_000)
    assert "2.0/4.0 MB" in console.file.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (65, "0:01:05"), (3661.6, "1:01:02")])
def test_durations(seconds, text):
    assert duration(seconds) == text
