"""Compiled programs are freed when they take too much."""

from __future__ import annotations

import jax

from memocr_jax.runs.compiled import free_programs_if_many


def test_programs_are_freed_when_they_take_too_much():
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    assert not free_programs_if_many(share=1.0) and double._cache_size() == 1
    # Mappings of the process itself are more than none.
    assert free_programs_if_many(share=0.0) and double._cache_size() == 0
    assert double(1.0) == 2
