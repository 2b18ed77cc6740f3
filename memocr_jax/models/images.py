"""Images for the vision tower, on the host with numpy: resize, normalise, cut into patches, group by window.

Patches and grids are those of transformers' `Qwen2VLImageProcessor`. The padded-window layout is ours: a row
per image, every attention window with all its slots, so that few executables serve every aspect ratio.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8

from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import VisionBatch
from memocr_jax.models.config import VisionConfig


class Patches(NamedTuple):
    """An image as the vision tower takes it, before it is laid out by windows."""

    values: Float[np.ndarray, "N features"]
    """Normalised; merge units in raster order, the patches of a unit together."""
    grid: tuple[int, int]
    """Rows and columns, in patches."""


Image = np.ndarray | Patches
"""Pixels u8[H, W, 3] whose sides are multiples of an image token, or patches made of such pixels."""


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What `preprocessor_config.json` says about images."""

    min_pixels: int = 56 * 56
    """Smaller images are enlarged to at least this area."""
    max_pixels: int = 28 * 28 * 1280
    """Larger images are shrunk to at most this area."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean of each channel, over [0, 1] (CLIP's, arXiv 2103.00020)."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(cls, preprocessor: Mapping[str, Any]) -> ImageSettings:
        """Read `preprocessor_config.json`: sizes as `size` or, before transformers 5, as min/max_pixels."""
        size = preprocessor.get("size") or {}
        values = {
            "min_pixels": preprocessor.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": preprocessor.get("max_pixels") or size.get("longest_edge"),
            "mean": preprocessor.get("image_mean"),
            "std": preprocessor.get("image_std"),
        }
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None})


def smart_resize(height_px: int, width_px: int, token_px: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width to which an image is resized: multiples of `token_px`, with the area within the limits
    and nearly the same aspect ratio. This is the rule of the published models (Qwen2-VL, arXiv 2409.12191).

    Raises UserError for an image more than 200 times as long as wide.
    """
    longer, shorter = max(height_px, width_px), min(height_px, width_px)
    if shorter < 1 or longer / shorter > 200:
        raise UserError(f"image of {width_px} x {height_px} px: one side is more than 200 times the other")
    height, width = (round(side / token_px) * token_px for side in (height_px, width_px))
    if height * width > settings.max_pixels:
        shrink = math.sqrt(height_px * width_px / settings.max_pixels)
        height, width = (
            max(token_px, math.floor(side / shrink / token_px) * token_px) for side in (height_px, width_px)
        )
    elif height * width < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height_px * width_px))
        height, width = (math.ceil(side * grow / token_px) * token_px for side in (height_px, width_px))
    return height, width


def resize(image: UInt8[np.ndarray, "H W 3"], config: VisionConfig, settings: ImageSettings) -> np.ndarray:
    """The image as `Qwen2VLImageProcessor` resizes it (bicubic): u8[h, w, 3]."""
    height, width = smart_resize(*image.shape[:2], config.token_px, settings)
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def prepare_image(
    image: UInt8[np.ndarray, "H W 3"], config: VisionConfig, settings: ImageSettings = ImageSettings()
) -> Patches:
    """Normalised patches of an image and its grid; the image is taken at its own size (see `resize`).

    A patch is channels x frames x rows x columns; a still image is the same frame twice.

    Raises:
        UserError: not u8[H, W, 3], or a side is no multiple of an image token.
    """
    pixels, grid = cut_patches(image, config)
    patch = config.patch_size
    channels = pixels.reshape(-1, 3, patch * patch)
    values = normal_values(settings).T[np.arange(3)[:, None], channels]
    frames = np.repeat(values[:, :, None], config.temporal_patch_size, axis=2)
    return Patches(frames.reshape(len(pixels), config.patch_features), grid)


def cut_patches(
    image: UInt8[np.ndarray, "H W 3"], config: VisionConfig
) -> tuple[UInt8[np.ndarray, "N pixels"], tuple[int, int]]:
    """The patches of an image as bytes, and its grid; `prepare_image` without the arithmetic.

    Returns:
        u8[N, pixels]: merge units in raster order; a patch is channels x rows x columns, and (rows, columns)
        in patches.

    Raises:
        UserError: as `prepare_image`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"image is {image.dtype}{list(image.shape)}; it must be uint8 [height, width, 3]")
    _check_sides(*image.shape[:2], config)
    patch, merge = config.patch_size, config.spatial_merge_size
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    units = image.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    units = units.transpose(0, 3, 1, 4, 6, 2, 5)  # unit row, unit column, row, column, channel, y, x
    return units.reshape(rows * columns, 3 * patch * patch), (rows, columns)


def normal_values(settings: ImageSettings = ImageSettings()) -> Float[np.ndarray, "256 3"]:
    """What each of the 256 bytes becomes in each channel, in the order of operations of the published
    processor."""
    values = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)[:, None]
    return (values - np.float32(settings.mean)) / np.float32(settings.std)


def num_windows(height_px: int, width_px: int, config: VisionConfig) -> int:
    """Attention windows of an image, those cut off at its edges included."""
    _check_sides(height_px, width_px, config)
    return math.prod(
        math.ceil(side / config.token_px / config.window_tokens) for side in (height_px, width_px)
    )


def grid_tokens(grid: tuple[int, int], config: VisionConfig) -> int:
    """Tokens that an image of (rows, columns) patches takes in the text."""
    return grid[0] * grid[1] // config.merge_unit


def image_grid(image: Image, config: VisionConfig) -> tuple[int, int]:
    """(rows, columns) of an image in patches."""
    if isinstance(image, Patches):
        return image.grid
    _check_sides(*image.shape[:2], config)
    return image.shape[0] // config.patch_size, image.shape[1] // config.patch_size


def image_hash(image: Image) -> bytes:
    """The identity of an image: equal for images of equal size and pixels (or patches).

    A page is identified before it is drawn, by its content and settings (`MemoryPage.content_hash`). A view
    of it is identified by its pixels, which are all that the model sees.
    """
    array, shape = image if isinstance(image, Patches) else (image, image.shape)
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest() + repr(shape).encode()


def most_windows(images: Sequence[Image | None], config: VisionConfig, multiple: int) -> int:
    """The number of windows that a program for these images has; 0 when there are none."""
    grids = [image_grid(image, config) for image in images if image is not None]
    counts = [num_windows(r * config.patch_size, c * config.patch_size, config) for r, c in grids]
    return bucket(max(counts), multiple) if counts else 0


def image_rows(
    images: Sequence[Image | None], rows: int, windows: int, config: VisionConfig
) -> tuple[VisionBatch | None, list[np.ndarray | None]]:
    """One vision row of `windows` windows for each prompt row, and the feature indices of each image.

    Returns (None, [None, ...]) when no row has an image. Raises ValueError when only some have: rows with and
    without images run as different programs.
    """
    present = [image for image in images if image is not None]
    if not present:
        return None, [None] * len(images)
    if len(present) != len(images):
        raise ValueError("rows with and without an image cannot share a batch")
    vision, slots = vision_batch(present, config, windows=windows, rows=rows)
    return vision, list(slots)


def vision_batch(
    images: Sequence[Image],
    config: VisionConfig,
    windows: int | None = None,
    rows: int | None = None,
    places: Sequence[int] | None = None,
) -> tuple[VisionBatch, list[Int32[np.ndarray, "_"]]]:
    """`pack_patches` of images at their own sizes: pixels stay bytes, which the vision tower normalises,
    unless some are patches that were prepared already."""
    prepare = prepare_image if any(isinstance(image, Patches) for image in images) else cut_patches
    cut = [image if isinstance(image, Patches) else prepare(image, config) for image in images]
    return pack_patches([p for p, _ in cut], [g for _, g in cut], config, windows, rows, places)


def pack_patches(
    patches: Sequence[Float[np.ndarray, "_ features"]] | Sequence[UInt8[np.ndarray, "_ pixels"]],
    grids: Sequence[tuple[int, int]],
    config: VisionConfig,
    windows: int | None = None,
    rows: int | None = None,
    places: Sequence[int] | None = None,
) -> tuple[VisionBatch, list[Int32[np.ndarray, "_"]]]:
    """Arrange images in the padded-window layout.

    Args:
        patches, grids: per image, as `prepare_image` or `cut_patches` returns them.
        windows: windows per row (a bucket), default: as many as the image with the most has.
        rows: rows of the batch, default: as many as images. The rest is not valid.
        places: the row of each image, where a row may hold several; default a row for each.

    Returns:
        The batch [rows, windows, window patches, ...] as numpy arrays, and per image the index of each of
        its tokens, in raster order, into features flattened to [rows * slots, D].

    Raises:
        UserError: more images than rows or more windows than a row has, or a grid that does not divide.
    """
    merge, side = config.spatial_merge_size, config.window_tokens
    windows_of = [num_windows(r * config.patch_size, c * config.patch_size, config) for r, c in grids]
    rows = max(len(grids), 1) if rows is None else rows
    windows = max(windows_of, default=1) if windows is None else windows
    if places is None and len(grids) > rows:
        raise UserError(f"{len(grids)} images do not fit into {rows} rows")
    taken = np.zeros(rows, np.int64)
    np.add.at(taken, np.arange(len(grids)) if places is None else np.asarray(places, np.int64), windows_of)
    if taken.max(initial=0) > windows:
        raise UserError(f"an image has {max(windows_of)} windows; the rows have only {windows}")

    slots_per_row = windows * side**2
    features, kind = (patches[0].shape[1], patches[0].dtype) if patches else (_pixels(config), np.uint8)
    out = np.zeros((rows, slots_per_row, config.merge_unit, features), kind)
    coords = np.zeros((rows, slots_per_row, config.merge_unit, 2), np.int32)
    valid = np.zeros((rows, slots_per_row, config.merge_unit), bool)
    within = np.stack(np.divmod(np.arange(config.merge_unit), merge), axis=-1)  # row, column in a merge unit
    numbers = None if places is None else np.full((rows, windows), -1, np.int32)
    slots, taken = [], np.zeros(rows, np.int64)
    for i, (image, grid) in enumerate(zip(patches, grids, strict=True)):
        row = i if places is None else places[i]
        unit_columns = grid[1] // merge
        r, c = np.divmod(np.arange(len(image) // config.merge_unit), unit_columns)
        window = (r // side) * math.ceil(unit_columns / side) + c // side
        slot = (taken[row] + window) * side**2 + (r % side) * side + c % side
        out[row, slot] = image.reshape(-1, config.merge_unit, features)
        coords[row, slot] = np.stack([r, c], axis=-1)[:, None] * merge + within
        valid[row, slot] = True
        slots.append((row * slots_per_row + slot).astype(np.int32))
        if numbers is not None:
            numbers[row, taken[row] : taken[row] + windows_of[i]] = i
        taken[row] += windows_of[i]

    shape = (rows, windows, config.window_patches)
    batch = VisionBatch(
        patches=out.reshape(*shape, features),
        coords=coords.reshape(*shape, 2),
        valid=valid.reshape(shape),
        image=numbers,
    )
    return batch, slots


def _pixels(config: VisionConfig) -> int:
    """Bytes of a patch."""
    return 3 * config.patch_size**2


def _check_sides(height_px: int, width_px: int, config: VisionConfig) -> None:
    if min(height_px, width_px) < 1 or height_px % config.token_px or width_px % config.token_px:
        raise UserError(
            f"image of {width_px} x {height_px} px: both sides must be multiples of {config.token_px} px"
        )
