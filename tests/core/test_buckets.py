"""Padded sizes."""

from hypothesis import given
from hypothesis import strategies as st

from memocr_jax.core.buckets import batches, bucket


def test_sizes():
    # 64 * {1, 2, 3, 4, 6, 8, 12, ...}
    assert [bucket(n, 64) for n in (0, 64, 65, 129, 193, 257, 385, 513)] == [
        64,
        64,
        128,
        192,
        256,
        384,
        512,
        768,
    ]


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_holds_and_wastes_less_than_half(n, smallest):
    size = bucket(n, smallest)
    assert size >= max(n, smallest) and size % smallest == 0
    assert size == smallest or 2 * n > size
    assert bucket(size, smallest) == size


@given(st.integers(0, 200), st.integers(1, 50))
def test_batches_cover_in_order(n, size):
    parts = batches(n, size)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(0 < len(part) <= size for part in parts)
