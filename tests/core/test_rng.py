"""Named random streams."""

import numpy as np

from memocr_jax.core.rng import host_rng, row_key


def test_keys_depend_on_every_part_of_the_name_and_on_nothing_else():
    base = row_key(0, "draft", 1, "q1", 2, 3)
    assert base.dtype == np.uint32 and base.shape == (2,)
    np.testing.assert_array_equal(base, row_key(0, "draft", 1, "q1", 2, 3))
    others = [
        row_key(1, "draft", 1, "q1", 2, 3),
        row_key(0, "read", 1, "q1", 2, 3),
        row_key(0, "draft", 2, "q1", 2, 3),
        row_key(0, "draft", 1, "q2", 2, 3),
        row_key(0, "draft", 1, "q1", 3, 2),
        row_key(0, "draft", "1", "q1", 2, 3),  # the text "1" is not the number 1
    ]
    assert len({tuple(key) for key in [base, *others]}) == 7


def test_keys_of_many_rows_do_not_collide():
    keys = {tuple(row_key(0, "draft", step, g)) for step in range(100) for g in range(100)}
    assert len(keys) == 10_000


def test_host_streams_are_reproducible_and_apart():
    def draw(*labels):
        return host_rng(7, "gap_fill", *labels).integers(0, 2**31, 4).tolist()

    assert draw(1, "a") == draw(1, "a")
    assert draw(1, "a") != draw(2, "a")
