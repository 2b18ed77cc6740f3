"""The budget: the one place that decides at which resolution a page is read.

One visual token is 28 x 28 px. Sampler, trainer and evaluation all call these functions, so they see the
same image; the model's image processor then changes nothing (its resize to the same size is the identity,
given a `min_pixels` of at most 784).

A view never enlarges a page: no information can be won by it. What a page lacks to whole tokens is padded at
the right and at the bottom with the page's own background (the colour of its last pixel).
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
from PIL import Image

from render.settings import TOKEN_PX

MAX_RATIO = 200
"""Largest ratio of the sides that Qwen2-VL's image processor accepts."""
MAX_STRETCH = 1.25
"""Most that a view may stretch one side against the other to fill whole tokens; beyond, it is padded."""


def image_tokens(pixels: np.ndarray) -> int:
    """Visual tokens of an image u8[H, W, 3] whose sides are multiples of 28 px.

    Raises `ValueError` for other sides: such an image is no view.
    """
    height, width = pixels.shape[:2]
    if height % TOKEN_PX or width % TOKEN_PX:
        raise ValueError(
            f"an image of {height} x {width} px is no view: its sides are no multiples of {TOKEN_PX}"
        )
    return (height // TOKEN_PX) * (width // TOKEN_PX)


def fit(pixels: np.ndarray, budget_tokens: int) -> np.ndarray:
    """A page u8[H, W, 3] as an image u8[h, w, 3] of 1 to `budget_tokens` visual tokens.

    h and w are multiples of 28 with h * w <= 784 * `budget_tokens`, for every budget >= 1 and every shape. A
    page that fits is only padded to whole tokens. Otherwise it is reduced (Lanczos) by the least factor that
    the budget allows; what whole tokens leave over is filled by stretching one side up to `MAX_STRETCH`, and
    by padding beyond that, so extreme shapes keep their aspect. Raises `ValueError` for a budget below 1.
    """
    height, width = pixels.shape[:2]
    _check(pixels, budget_tokens)
    rows, columns = token_grid(height, width, budget_tokens)
    box_height, box_width = rows * TOKEN_PX, columns * TOKEN_PX
    content_height, content_width = _content(height, width, box_height, box_width)
    background = pixels[-1, -1]
    if (content_height, content_width) != (height, width):
        pixels = _resize(pixels, content_height, content_width)
    if (content_height, content_width) == (box_height, box_width):
        return pixels
    view = np.empty((box_height, box_width, 3), np.uint8)
    view[:] = background
    view[:content_height, :content_width] = pixels
    return view


def degrade(
    pixels: np.ndarray, budget_tokens: int, factor: int = 4, mode: Literal["shrink", "blur"] = "shrink"
) -> np.ndarray:
    """The low-resolution view of a page u8[H, W, 3] whose full view has at most `budget_tokens` tokens.

    `shrink`: the page at 1 / factor^2 of the tokens of its full view (at least 1): at factor 4, 512 become 32
    (objective augM of arXiv 2601.21468). `blur`: the full view reduced by `factor` per side and enlarged
    again, so with as many tokens as the full view. Raises `ValueError` for a factor below 1 or another mode.
    """
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be at least 1")
    full = fit(pixels, budget_tokens)
    if mode == "shrink":
        return fit(pixels, max(1, image_tokens(full) // factor**2))
    if mode != "blur":
        raise ValueError(f"mode is {mode!r}; it must be 'shrink' or 'blur'")
    height, width = full.shape[:2]
    small = _resize(full, max(1, height // factor), max(1, width // factor))
    return _resize(small, height, width, Image.Resampling.BICUBIC)


@functools.lru_cache(maxsize=4096)
def token_grid(height_px: int, width_px: int, budget_tokens: int) -> tuple[int, int]:
    """Rows and columns of tokens for a page: the grid within the budget that shows it largest.

    Among grids of the same scale the one with the fewest tokens; never more than the page has pixels for.
    """
    whole_rows, whole_columns = -(-height_px // TOKEN_PX), -(-width_px // TOKEN_PX)
    best, best_rank = (1, 1), (0.0, 0)
    for rows in range(1, min(budget_tokens, whole_rows) + 1):
        columns = min(budget_tokens // rows, whole_columns, MAX_RATIO * rows)
        scale = min(rows * TOKEN_PX / height_px, columns * TOKEN_PX / width_px, 1.0)
        # Columns that this scale does not fill are left out.
        columns = min(columns, max(1, math.ceil(scale * width_px / TOKEN_PX - 1e-9)))
        if rows > MAX_RATIO * columns:
            continue
        rank = (scale, -rows * columns)
        if rank > best_rank:
            best, best_rank = (rows, columns), rank
    return best


def _content(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """Sides of the reduced page within its box of whole tokens."""
    down, across = min(1.0, box_height / height), min(1.0, box_width / width)
    scale = min(down, across)
    down, across = min(down, scale * MAX_STRETCH), min(across, scale * MAX_STRETCH)
    return (
        min(box_height, max(1, round(height * down))),
        min(box_width, max(1, round(width * across))),
    )


def _resize(pixels: np.ndarray, height: int, width: int, how=Image.Resampling.LANCZOS) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _check(pixels: np.ndarray, budget_tokens: int) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(f"a page is u8[H, W, 3] with H, W >= 1, not {pixels.dtype}{list(pixels.shape)}")
    if budget_tokens < 1:
        raise ValueError(f"budget_tokens is {budget_tokens}; it must be at least 1")
