"""Packed rows [prefix | sibling 1 | ... | sibling K]: prompts as arrays, for decoding and training alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.rope import mrope_positions, next_position


class PlacedImage(NamedTuple):
    """Where the features of an image are, and its size."""

    slots: np.ndarray
    """i32[M], the feature index of each of its tokens"""
    grid: tuple[int, int]
    """Rows and columns in patches."""


@dataclasses.dataclass
class PackedRows:
    """B rows of L tokens, filled row by row on the host; what is not filled is padding (segment -1)."""

    tokens: np.ndarray  # i32[B L]
    mrope_pos: np.ndarray  # i32[3 B L]
    segments: np.ndarray  # i32[B L]: 0 prefix, k >= 1 sibling k, -1 padding
    image_slots: np.ndarray  # i32[B L]: index into the flattened image features, -1 for text

    @classmethod
    def empty(cls, rows: int, length: int) -> PackedRows:
        return cls(
            tokens=np.zeros((rows, length), np.int32),
            mrope_pos=np.zeros((3, rows, length), np.int32),
            segments=np.full((rows, length), -1, np.int32),
            image_slots=np.full((rows, length), -1, np.int32),
        )

    def place(
        self,
        row: int,
        prefix: np.ndarray,
        siblings: Sequence[np.ndarray],
        starts: Sequence[int],
        config: Qwen25VLConfig,
        images: Sequence[PlacedImage] = (),
        sibling_images: Sequence[Sequence[PlacedImage]] = (),
    ) -> list[int]:
        """Put a prefix at the row's start and sibling k at `starts[k]`.

        `images` are the prefix's in order of appearance, `sibling_images` those of each sibling, empty when
        none has any. The positions of a sibling count on from the prefix's last. Returns the position that
        follows each sibling.
        """
        following = self._put(row, 0, prefix, 0, 0, images, config)
        sibling_images = sibling_images or [()] * len(siblings)
        return [
            self._put(row, start, sibling, k + 1, following, own, config)
            for k, (sibling, start, own) in enumerate(zip(siblings, starts, sibling_images, strict=True))
        ]

    def spread(self, row: int, slots: Int[np.ndarray, "n"]) -> None:
        """Move the row's first n tokens to the given slots; what lies between them is padding."""
        for array, padding in (
            (self.tokens, 0),
            (self.mrope_pos, 0),
            (self.segments, -1),
            (self.image_slots, -1),
        ):
            own = array[..., row, : len(slots)].copy()
            array[..., row, :] = padding
            array[..., row, slots] = own

    def _put(
        self,
        row: int,
        start: int,
        ids: np.ndarray,
        segment: int,
        first: int,
        images: Sequence[PlacedImage],
        config: Qwen25VLConfig,
    ) -> int:
        """Put tokens at slot `start`, their positions counting on from `first`; returns the next position."""
        span = slice(start, start + len(ids))
        if images or segment == 0:
            positions = first + mrope_positions(ids, [image.grid for image in images], config)
        else:
            # A sampled sibling may hold any id, also the image placeholder's: all of it is text.
            positions = np.broadcast_to(first + np.arange(len(ids)), (3, len(ids)))
        self.tokens[row, span] = ids
        self.mrope_pos[:, row, span] = positions
        self.segments[row, span] = segment
        if images:
            slots = np.concatenate([image.slots for image in images])
            self.image_slots[row, span][ids == config.image_token_id] = slots
        return next_position(positions) if len(ids) else first
