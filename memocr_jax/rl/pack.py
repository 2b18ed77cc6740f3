"""Turns to training batches: turns that share a prefix are packed in one row (arXiv 2506.05433)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memocr_jax.buckets import batches, bucket
from memocr_jax.engine import image_grid, image_rows, most_windows
from memocr_jax.images import vision_batch
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rows import PackedRows
from memocr_jax.types import TrainBatch, Turn, VisionBatch


class WeightedTurn(NamedTuple):
    """A turn and the advantage that each of its sampled tokens is trained with."""

    turn: Turn
    advantage: float


@dataclasses.dataclass(frozen=True)
class Packing:
    """How rows are laid out."""

    model: Qwen25VLConfig
    max_row_tokens: int
    rows: int
    """Rows of a micro-batch."""
    length_multiple: int
    """Smallest padded length of a row; a quarter of it is the smallest padded number of sampled tokens."""
    window_multiple: int


@dataclasses.dataclass(frozen=True)
class MiniBatch:
    """The micro-batches of one optimiser update, and the denominators of its loss."""

    batches: list[TrainBatch]
    tokens: int
    """Sampled tokens."""
    sequences: int
    """Turns."""
    longest: int
    """Tokens of the longest completion."""


_COUNTS = ("tokens", "sequences", "longest")
"""Fields of a `MiniBatch` that are numbers."""


def pack_turns(turns: Sequence[WeightedTurn], packing: Packing) -> MiniBatch:
    """Pack the turns of one mini-batch.

    Turns with the same prefix and image share a row as far as `max_row_tokens` allows. Rows of like size form
    micro-batches of `packing.rows` rows; missing rows are padding. Token ids go in as they were sampled.
    """
    rows = [part for group in _prefix_groups(turns) for part in _split(group, packing.max_row_tokens)]
    by_shape: dict[tuple[int, int, int], list[list[WeightedTurn]]] = {}
    for row in rows:
        by_shape.setdefault(_shape(row, packing), []).append(row)
    packed = [
        _pack_rows([same[i] for i in chosen], shape, packing)
        for shape, same in sorted(by_shape.items())
        for chosen in batches(len(same), packing.rows)
    ]
    lengths = [len(t.turn.completion.tokens) for t in turns]
    return MiniBatch(packed, sum(lengths), len(turns), max(lengths, default=0))


def save_minibatch(path: str | Path, minibatch: MiniBatch) -> None:
    """Write a mini-batch (this process's rows) as a compressed .npz, for someone to look into."""
    arrays = {name: np.asarray(getattr(minibatch, name)) for name in _COUNTS}
    for i, batch in enumerate(minibatch.batches):
        vision = {} if batch.vision is None else batch.vision._asdict()
        fields = {**batch._asdict(), **{f"vision.{name}": value for name, value in vision.items()}}
        del fields["vision"]
        arrays |= {f"{i}.{name}": np.asarray(value) for name, value in fields.items()}
    np.savez_compressed(path, **arrays)


def load_minibatch(path: str | Path) -> MiniBatch:
    """Read what `save_minibatch` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    counts = {name: int(arrays.pop(name)) for name in _COUNTS}
    by_batch: dict[int, dict[str, np.ndarray]] = {}
    for name, value in arrays.items():
        number, _, field = name.partition(".")
        by_batch.setdefault(int(number), {})[field] = value
    batches = []
    for _, fields in sorted(by_batch.items()):
        vision = {f: fields.pop(f"vision.{f}") for f in VisionBatch._fields if f"vision.{f}" in fields}
        batches.append(TrainBatch(**fields, vision=VisionBatch(**vision) if vision else None))
    return MiniBatch(batches, **counts)


def _prefix_groups(turns: Sequence[WeightedTurn]) -> list[list[WeightedTurn]]:
    groups: dict[tuple[bytes, bytes, tuple[int, ...]], list[WeightedTurn]] = {}
    for t in turns:
        image = t.turn.image
        # Two pages may have prefixes of the same ids (as many image tokens) and still differ.
        key = (
            t.turn.prefix.tobytes(),
            b"" if image is None else image.tobytes(),
            () if image is None else image.shape,
        )
        groups.setdefault(key, []).append(t)
    return list(groups.values())


def _sibling(turn: Turn) -> np.ndarray:
    """i32[S + C]: the turn's own prompt part and what was sampled after it."""
    return np.concatenate([turn.suffix, turn.completion.tokens])


def _split(group: list[WeightedTurn], max_row_tokens: int) -> list[list[WeightedTurn]]:
    """Cut a group into rows of at most `max_row_tokens`; a sibling that is too long alone is a row alone."""
    prefix = len(group[0].turn.prefix)
    parts: list[list[WeightedTurn]] = [[]]
    used = prefix
    for t in group:
        size = len(t.turn.suffix) + len(t.turn.completion.tokens)
        if parts[-1] and used + size > max_row_tokens:
            parts.append([])
            used = prefix
        parts[-1].append(t)
        used += size
    return parts


def _shape(row: list[WeightedTurn], packing: Packing) -> tuple[int, int, int]:
    """(windows, length, sampled tokens) of the executable that takes this row."""
    length = len(row[0].turn.prefix) + sum(len(_sibling(t.turn)) for t in row)
    sampled = sum(len(t.turn.completion.tokens) for t in row)
    windows = most_windows([row[0].turn.image], packing.model, packing.window_multiple)
    return (
        windows,
        bucket(length, packing.length_multiple),
        bucket(sampled, max(1, packing.length_multiple // 4)),
    )


def batch_shape(batch: TrainBatch) -> tuple[int, int, int]:
    """(windows, length, sampled tokens): micro-batches of equal shape run the same executable."""
    windows = 0 if batch.vision is None else batch.vision.patches.shape[1]
    return windows, batch.tokens.shape[1], batch.target.shape[1]


def empty_batch(shape: tuple[int, int, int], packing: Packing) -> TrainBatch:
    """A micro-batch of the given `batch_shape` that is all padding."""
    return _pack_rows([], shape, packing)


def _pack_rows(rows: list[list[WeightedTurn]], shape: tuple[int, int, int], packing: Packing) -> TrainBatch:
    windows, length, sampled = shape
    images = [row[0].turn.image for row in rows]
    vision, slots = image_rows(images, packing.rows, windows, packing.model)
    if windows and not rows:
        vision, _ = vision_batch([], packing.model.vision, windows=windows, rows=packing.rows)
    packed = PackedRows.empty(packing.rows, length)
    predict_pos = np.zeros((packing.rows, sampled), np.int32)
    target = np.zeros((packing.rows, sampled), np.int32)
    sequence = np.zeros((packing.rows, sampled), np.int32)
    loss_mask = np.zeros((packing.rows, sampled), bool)
    advantage = np.zeros((packing.rows, sampled), np.float32)
    sampler_logp = np.zeros((packing.rows, sampled), np.float32)
    for b, row in enumerate(rows):
        siblings = [_sibling(t.turn) for t in row]
        prefix = row[0].turn.prefix
        ends = len(prefix) + np.cumsum([len(s) for s in siblings])
        starts = [int(end) - len(s) for end, s in zip(ends, siblings, strict=True)]
        grid = image_grid(row[0].turn.image, packing.model)
        packed.place(b, prefix, siblings, starts, slots[b], grid, packing.model)
        filled = 0
        for k, (t, end) in enumerate(zip(row, ends, strict=True)):
            completion = t.turn.completion
            n = len(completion.tokens)
            span = slice(filled, filled + n)
            # The logits at a token's predecessor made it; suffixes are never empty, so it is own.
            predict_pos[b, span] = int(end) - n - 1 + np.arange(n)
            target[b, span] = completion.tokens
            sequence[b, span] = k
            loss_mask[b, span] = True
            advantage[b, span] = t.advantage
            sampler_logp[b, span] = completion.sampler_logp
            filled += n
    return TrainBatch(
        tokens=packed.tokens,
        mrope_pos=packed.mrope_pos.transpose(1, 0, 2),
        segments=packed.segments,
        image_slots=packed.image_slots,
        vision=vision,
        predict_pos=predict_pos,
        target=target,
        loss_mask=loss_mask,
        sequence=sequence,
        advantage=advantage,
        sampler_logp=sampler_logp,
    )
