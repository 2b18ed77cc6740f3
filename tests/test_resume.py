"""Runs that are killed, preempted and moved end as if nothing had happened."""

import shutil
import time

import numpy as np
import pytest

from tests.training_runs import WITH_SIGNAL, finish, params_of, start, write_config
from tests.waiting import wait_until

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    validation = {"every_steps": 3, "questions": 2, "samples": 1, "budgets": [64]}
    write_config(folder / "quick.yaml", train={"steps": STEPS}, validation=validation)
    return folder


def options(run_dir, *more):
    return "--config", "quick.yaml", "--run.dir", run_dir, *more


def lines(run_dir):
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(folder, run_dir, rng, *more, **how) -> int:
    """Start the run and kill it (SIGKILL) at a random moment; returns its steps so far."""
    process = start(folder, WITH_SIGNAL, *options(run_dir, *more), **how)
    # From the first seconds of starting up to the middle of the second step to come.
    wanted = lines(folder / run_dir) + int(rng.integers(0, 3)) if rng.random() < 0.8 else -1
    if wanted >= 0:
        wait_until(lambda: lines(folder / run_dir) >= wanted or process.poll() is not None)
    time.sleep(float(rng.uniform(0, 2 if wanted >= 0 else 15)))
    process.kill()
    process.communicate()
    return lines(folder / run_dir)


def require_same(folder, ours, theirs):
    assert (folder / ours / "metrics.jsonl").read_bytes() == (folder / theirs / "metrics.jsonl").read_bytes()
    for a, b in zip(params_of(folder / ours), params_of(folder / theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("staleness", [0, 1])
def test_ten_kills_change_nothing(folder, staleness):
    more = ("--rl.staleness", staleness, "--rl.tis-cap", 2.0 * staleness)
    whole, cut = f"whole{staleness}", f"cut{staleness}"
    finish(start(folder, WITH_SIGNAL, *options(whole, *more)))
    rng = np.random.default_rng(staleness)
    steps = [killed(folder, cut, rng, *more) for _ in range(10)]
    print(f"steps finished at each kill: {steps}")
    finish(start(folder, WITH_SIGNAL, *options(cut, *more)))
    require_same(folder, cut, whole)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_goes_on_with_fewer_devices(folder):
    whole = folder / "whole0"
    if not whole.is_dir():
        finish(start(folder, WITH_SIGNAL, *options("whole0")))
    four = start(folder, WITH_SIGNAL, *options("moved", "--mesh.fsdp", 2, "--mesh.tensor", 2), devices=4)
    wait_until(lambda: lines(folder / "moved") >= 5, four)
    four.kill()
    four.communicate()
    assert 5 <= lines(folder / "moved") < STEPS
    finish(start(folder, WITH_SIGNAL, *options("moved", "--mesh.fsdp", 2), devices=2))
    for a, b in zip(params_of(folder / "moved"), params_of(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def test_a_stale_run_that_is_killed_goes_on_with_the_weights_it_would_have_sampled_with(folder):
    """One kill, three steps; the long versions above are soak tests."""
    more = ("--rl.staleness", 1, "--rl.tis-cap", 2.0, "--train.steps", 3, "--validation.every-steps", 0)
    finish(start(folder, WITH_SIGNAL, *options("stale", *more)))
    shutil.copytree(folder / "stale", folder / "stale_cut")
    for step in (2, 3):  # as if it had been killed after its first checkpoint
        shutil.rmtree(folder / "stale_cut" / "checkpoints" / str(step))
    finish(start(folder, WITH_SIGNAL, *options("stale_cut", *more)))
    require_same(folder, "stale_cut", "stale")
