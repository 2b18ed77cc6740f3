"""Named random streams: what is drawn depends on what it is for, never on batching, bucket or mesh."""

from __future__ import annotations

import hashlib

import numpy as np


def row_key(seed: int, stream: str, *labels: int | str) -> np.ndarray:
    """Key data u32[2] (threefry) of one row: a hash of the seed, the stream's name and the row's labels.

    Labels identify the row in the world (step, example id, sample, turn), not its place in a batch, so a row
    draws the same numbers whatever its neighbours are.
    """
    return np.frombuffer(_digest(seed, stream, labels)[:8], np.uint32)


def host_rng(seed: int, stream: str, *labels: int | str) -> np.random.Generator:
    """Numpy generator of a named stream, for randomness that is drawn on the host."""
    return np.random.default_rng(np.frombuffer(_digest(seed, stream, labels), np.uint32))


def _digest(seed: int, stream: str, labels: tuple[int | str, ...]) -> bytes:
    # repr keeps 1 and "1" apart and separates the parts unambiguously.
    return hashlib.blake2b(repr((seed, stream, labels)).encode(), digest_size=16).digest()
