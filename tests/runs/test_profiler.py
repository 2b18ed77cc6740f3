"""Profiles of the steps that are named."""

from __future__ import annotations

import jax
import pytest

from memocr_jax.config import profile_steps
from memocr_jax.core.errors import UserError
from memocr_jax.runs.profiler import Profiler


@pytest.mark.parametrize(("text", "steps"), [("", None), ("10:13", (10, 13)), ("7", (7, 7))])
def test_profile_steps(text, steps):
    assert profile_steps(text) == steps


@pytest.mark.parametrize("text", ["x", "3:2", "0:1", "1:2:3", ":4"])
def test_profile_steps_that_mean_nothing(text):
    with pytest.raises(UserError, match=r"profile\.steps is "):
        profile_steps(text)


def test_a_profile_of_the_named_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda where: calls.append(("start", where)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    with Profiler(tmp_path, "2:3") as profiler:
        for step in range(1, 6):
            profiler.begin(step)
            profiler.end(step)
            calls.append(step)
    assert calls == [1, ("start", str(tmp_path)), 2, ("stop",), 3, 4, 5]
    with Profiler(tmp_path, "4:9") as profiler:  # a run that ends within them keeps what there is
        profiler.begin(4)
    assert calls[-1] == ("stop",)
