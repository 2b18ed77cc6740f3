"""Rotary embeddings: M-RoPE of the decoder and 2-D rotary of the vision tower; positions of a conversation.

Angles, sines and cosines are float32 whatever the compute type: bfloat16 rounds position 257 to 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """f32[dim / 2], the angle per position of each rotary pair (arXiv 2104.09864, section 3.2.2)."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (1.0 / np.float32(theta) ** exponents).astype(np.float32)


def mrope_angles(mrope_pos: Int32[Array, "3 *shape"], config: TextConfig) -> Float[Array, "*shape half"]:
    """Angles of the decoder's rotary pairs, float32.

    Each frequency turns with one of the three positions (temporal, row, column): the first
    `mrope_section[0]` with the temporal one and so on (arXiv 2409.12191, section 2.1).
    """
    sections = config.mrope_section
    axis = np.repeat(np.arange(len(sections)) % 3, sections)
    inverse = inverse_frequencies(config.head_dim, config.rope_theta)
    return jnp.moveaxis(mrope_pos[axis], 0, -1).astype(jnp.float32) * inverse


def vision_angles(coords: Int32[Array, "*shape 2"], config: VisionConfig) -> Float[Array, "*shape half"]:
    """Angles of the vision tower's rotary pairs, float32: the first half turns with the row, the rest
    with the column of the patch."""
    inverse = inverse_frequencies(config.head_dim // 2, config.rope_theta)
    angles = coords[..., None].astype(jnp.float32) * inverse
    return angles.reshape(*coords.shape[:-1], config.head_dim // 2)


def sin_cos(
    angles: Float[Array, "*shape half"],
) -> tuple[Float[Array, "*shape 1 half"], Float[Array, "*shape 1 half"]]:
    """Sine and cosine of rotary angles, ready to broadcast over heads."""
    return jnp.sin(angles)[..., None, :], jnp.cos(angles)[..., None, :]


def rotate(
    x: Float[Array, "*shape heads dim"],
    sincos: tuple[Float[Array, "*shape 1 half"], Float[Array, "*shape 1 half"]],
) -> Float[Array, "*shape heads dim"]:
    """Rotate pairs (i, i + dim / 2) of every head, computed in float32 and returned in x's type."""
    sin, cos = sincos
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def mrope_positions(
    ids: np.ndarray, image_grids: Sequence[tuple[int, int]], config: Qwen25VLConfig
) -> np.ndarray:
    """M-RoPE positions of one conversation without padding, as transformers' `get_rope_index` gives them.

    Args:
        ids: i32[L] token ids with every image as a run of `image_token_id`.
        image_grids: per image, in order, its rows and columns in patches.
        config: the model's configuration.

    Returns:
        i32[3, L]: temporal, row and column position. Text counts on in all three; an image's tokens share
        one temporal position, and the text after it continues above the largest position in the image.

    Raises:
        UserError: the ids hold a video, or their image tokens are not those of `image_grids`.
    """
    ids = np.asarray(ids)
    if (ids == config.video_token_id).any():
        raise UserError(f"token id {config.video_token_id} stands for a video; only images are supported")
    merge = config.vision.spatial_merge_size
    is_image = ids == config.image_token_id
    positions = np.zeros((3, len(ids)), np.int32)
    start, next_position = 0, 0
    for grid in image_grids:
        rows, columns = (int(side) // merge for side in grid)
        ahead = np.flatnonzero(is_image[start:])
        first = start + ahead[0] if len(ahead) else len(ids)
        end = first + rows * columns
        if end > len(ids) or not is_image[first:end].all():
            raise UserError(
                f"image {tuple(grid)} (patches) needs {rows * columns} image tokens in a row; "
                f"the text has {_run_length(is_image, first)} at position {first}"
            )
        positions[:, start:first] = next_position + np.arange(first - start)
        next_position += first - start
        row, column = np.divmod(np.arange(rows * columns), columns)
        positions[:, first:end] = next_position + np.stack([np.zeros_like(row), row, column])
        next_position += max(rows, columns)
        start = end
    if is_image[start:].any():
        raise UserError(
            f"the text has {int(is_image.sum())} image tokens; the {len(image_grids)} images given "
            f"account for {int(is_image[:start].sum())}"
        )
    positions[:, start:] = next_position + np.arange(len(ids) - start)
    return positions


def _run_length(flags: np.ndarray, start: int) -> int:
    """Number of consecutive True from `start`."""
    rest = flags[start:]
    return int(np.argmin(rest)) if len(rest) and not rest.all() else len(rest)


def next_position(mrope_pos: np.ndarray | jax.Array) -> int:
    """Position (the same in all three rows) of the token that follows a conversation of i32[3, L]."""
    return int(mrope_pos.max()) + 1 if mrope_pos.shape[-1] else 0
