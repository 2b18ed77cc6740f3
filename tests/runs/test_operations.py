"""Logs of processes, stacks of a hanging one, profiles, and the account of a run's time."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from memocr_jax.config import Config, profile_steps
from memocr_jax.core.errors import UserError
from memocr_jax.runs import operations
from memocr_jax.runs.operations import Goodput, Operations, Profiler, free_programs_if_many
from tests.waiting import LIMIT_S


def test_watchdog_writes_stacks_and_ends_the_process(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from memocr_jax.runs.operations import Watchdog\n"
        "def wait_for_ever():\n    time.sleep(900)\n"
        "with Watchdog(pathlib.Path(sys.argv[1]) / 'stacks' / 'process_0000.txt', 3) as watchdog:\n"
        "    for _ in range(8):\n        time.sleep(0.5)\n        watchdog.beat()\n"
        "    print('beaten', flush=True)\n"
        "    wait_for_ever()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 1 and done.stdout == "beaten\n", "beats kept it alive for more than its limit"
    stacks = (tmp_path / "stacks" / "process_0000.txt").read_text()
    assert "Timeout" in stacks and "wait_for_ever" in stacks


def test_nothing_is_left_of_a_watchdog_that_was_not_needed(tmp_path):
    path = tmp_path / "stacks" / "process_0000.txt"
    with operations.Watchdog(path, 60) as watchdog:
        watchdog.beat()
    assert not path.parent.exists()


class _Clock:
    """`time.perf_counter` that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(operations.time, "perf_counter", lambda: self.now)


def test_goodput_counts_a_repeated_step_as_lost_and_compilation_apart(tmp_path, monkeypatch):
    clock = _Clock(monkeypatch)
    path = tmp_path / "goodput.json"

    def attempt(steps):
        with Goodput(path) as goodput:
            with goodput.stage("restore"):
                clock.now += 5
            for step, compiling in steps:
                goodput.begin_step()
                goodput._listen(operations.COMPILE_EVENT, compiling)
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
            **dict.fromkeys(operations.CATEGORIES, 0.0),
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


def test_each_process_has_a_log(tmp_path):
    with pytest.raises(RuntimeError), Operations(Config(), tmp_path, process=3) as watched:
        watched.begin(1)
        logging.getLogger("some.library").warning("odd")
        watched.end(1, {"update": 1.5})
        raise RuntimeError("the end")
    text = (tmp_path / "logs" / "process_0003.log").read_text()
    assert "process 0 of 1 on " in text and "WARNING some.library: odd" in text
    assert "step 1: update 1.5" in text and "RuntimeError: the end" in text
    assert not (tmp_path / "goodput.json").exists(), "process 0 keeps the account"
    assert not (tmp_path / "stacks").exists()


def test_programs_are_freed_when_they_take_too_much():
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    assert not free_programs_if_many(share=1.0) and double._cache_size() == 1
    # Mappings of the process itself are more than none.
    assert free_programs_if_many(share=0.0) and double._cache_size() == 0
    assert double(1.0) == 2
