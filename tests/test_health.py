"""A run in which something is wrong for good stops by itself, and what was done so far is there."""

import math

import pytest

from memocr_jax.rl.pack import load_minibatch
from tests.training_runs import WITH_SIGNAL, finish, metrics_of, params_of, start, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("health")
    write_config(folder / "quick.yaml", train={"steps": 8})
    return folder


def test_updates_that_are_not_finite_stop_the_run_with_the_batch_saved(folder):
    more = (
        "--optimizer.learning-rate",
        1e30,
        "--optimizer.warmup-steps",
        0,
        "--health.max-skipped-updates",
        2,
    )
    output = finish(
        start(folder, WITH_SIGNAL, "--config", "quick.yaml", "--run.dir", "diverged", *more), status=2
    )
    assert "error: health.max_skipped_updates: 2 updates in a row" in output
    run_dir = folder / "diverged"
    # The first update of that size is finite; with its weights no loss is.
    assert [m["update/skipped"] for m in metrics_of(run_dir)] == [0, 1, 1]
    assert all(math.isfinite(x) or abs(x) > 1e20 for p in params_of(run_dir) for x in p.flat[:10])
    (batch,) = (run_dir / "failed").iterdir()
    assert batch.name in output and load_minibatch(batch).batches
    # The same command goes on from there, and stops again.
    output = finish(
        start(folder, WITH_SIGNAL, "--config", "quick.yaml", "--run.dir", "diverged", *more), status=2
    )
    assert "3 updates in a row" in output and len(metrics_of(run_dir)) == 4


def test_pages_that_cannot_be_drawn_stop_the_run(folder):
    more = ("--render.max-chars", 1, "--health.max-failed-pages", 0.5)
    output = finish(
        start(folder, WITH_SIGNAL, "--config", "quick.yaml", "--run.dir", "blank", *more), status=2
    )
    assert "error: health.max_failed_pages: 4 of 4 pages could not be drawn (allowed: 50%)" in output
    assert [m["step"] for m in metrics_of(folder / "blank")] == [1]
    assert (folder / "blank" / "checkpoints" / "1").is_dir()
