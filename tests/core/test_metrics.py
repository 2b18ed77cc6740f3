"""Means with denominators."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memocr_jax.core.metrics import Metrics, Stopwatch


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1), min_size=1))
def test_a_mean_does_not_depend_on_how_it_is_batched(parts):
    whole, batched = Metrics(), Metrics()
    whole.mean("a/x", [value for part in parts for value in part])
    for part in parts:
        batched.mean("a/x", float(np.mean(part)), weight=len(part))
    np.testing.assert_allclose(batched.as_dict()["a/x"], whole.as_dict()["a/x"], rtol=1e-9, atol=1e-9)


def test_empty_and_broken_means_are_none_and_zero_counts_appear():
    metrics = Metrics()
    metrics.mean("a/empty", [])
    metrics.add_sum("a/none", 0.0, 0)
    metrics.mean("a/nan", float("nan"))
    metrics.count("b/failed", 0)
    assert metrics.as_dict() == {"a/empty": None, "a/nan": None, "a/none": None, "b/failed": 0}


def test_stopwatch_sums_and_starts_again():
    watch = Stopwatch()
    for _ in range(2):
        with watch("draft"):
            pass
    first = watch.take()
    assert set(first) == {"draft"} and first["draft"] > 0
    assert watch.take() == {}
