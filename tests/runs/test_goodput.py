"""The account of a run's time."""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import pytest

from memocr_jax.runs.goodput import CATEGORIES, COMPILE_EVENT, Goodput


class _Clock:
    """`time.perf_counter` that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_goodput_counts_a_repeated_step_as_lost_and_compilation_apart(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    path = tmp_path / "goodput.json"

    def attempt(steps):
        with Goodput(path) as goodput:
            with goodput.stage("restore"):
                clock.now += 5
            for step, compiling in steps:
                goodput.begin_step()
                goodput._listen(COMPILE_EVENT, compiling)
                goodput._listen("/another/event", 1000.0)
                clock.now += 20 + compiling
                stages = {"draft": 6.0 + compiling, "read": 4.0, "render_exposed": 1.0, "update": 7.0}
                goodput.end_step(step, stages)

    attempt([(1, 30.0), (2, 0.0)])
    attempt([(2, 10.0), (3, 0.0)])  # step 2 was not saved
    account = json.loads(path.read_text())
    # Each of four steps: 10 s of rollout, 1 of pages, 7 of update, 2 that no stage has; 40 s of compilation.
    assert account["seconds"] == pytest.approx(
        {
            **dict.fromkeys(CATEGORIES, 0.0),
            **{"compile": 40.0, "restore": 10.0, "rollout": 40.0, "render": 4.0, "update": 28.0, "idle": 8.0},
        }
    )
    assert account["lost_s"] == pytest.approx(17.0)
    assert account["goodput"] == pytest.approx(3 * 17 / 130)
    assert len(account["attempts"]) == 2


def test_compilation_is_what_jax_reports():
    with Goodput(None) as goodput:
        goodput.begin_step()
        jax.jit(lambda x: x * 3.25 + 17)(jnp.ones(3)).block_until_ready()
        goodput.end_step(1, {"update": 100.0})
        assert goodput.summary()["seconds"]["compile"] > 0
