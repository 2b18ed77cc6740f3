"""Packed rows [prefix | sibling 1 | ... | sibling K]: prompts as arrays, for decoding and training alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.rope import mrope_positions, next_position


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
        image_slots: np.ndarray | None,
        image_grid: tuple[int, int] | None,
        config: Qwen25VLConfig,
    ) -> int:
        """Put a prefix at the row's start and sibling k at `starts[k]`.

        `image_slots` i32[M] are the feature indices of the prefix's image tokens, `image_grid` is its rows
        and columns in patches. Siblings are text: their positions count on from the prefix's last. Returns
        the position that follows the prefix.
        """
        positions = mrope_positions(prefix, [image_grid] if image_grid else [], config)
        following = next_position(positions)
        end = len(prefix)
        self.tokens[row, :end] = prefix
        self.mrope_pos[:, row, :end] = positions
        self.segments[row, :end] = 0
        if image_slots is not None:
            self.image_slots[row, :end][prefix == config.image_token_id] = image_slots
        for k, (sibling, start) in enumerate(zip(siblings, starts, strict=True)):
            span = slice(start, start + len(sibling))
            self.tokens[row, span] = sibling
            self.mrope_pos[:, row, span] = following + np.arange(len(sibling))
            self.segments[row, span] = k + 1
        return following
