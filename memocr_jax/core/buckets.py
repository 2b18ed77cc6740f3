"""The few sizes that lengths and counts are padded to, so that few executables are compiled."""

from __future__ import annotations


def bucket(n: int, smallest: int = 1) -> int:
    """The least size >= n among smallest * {1, 2, 3, 4, 6, 8, 12, 16, ...}: less than half is padding."""
    power = smallest
    while power < n:
        power *= 2
    between = power // 4 * 3
    return between if power >= 4 * smallest and between >= n else power


def batches(n: int, size: int) -> list[range]:
    """range(n) cut into consecutive ranges of at most `size`."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
