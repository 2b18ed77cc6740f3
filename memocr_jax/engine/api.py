"""Qwen2.5-VL in two functions, over numpy arrays exactly as transformers' processor returns them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memocr_jax.config import EngineConfig, MeshConfig, SamplingConfig
from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import row_key
from memocr_jax.core.sharding import batch_shards, make_mesh
from memocr_jax.core.types import VisionBatch
from memocr_jax.engine.engine import Engine
from memocr_jax.engine.groups import PromptGroup
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import Patches, grid_tokens, most_windows, vision_batch
from memocr_jax.models.packing import PackedRows, PlacedImage
from memocr_jax.models.qwen25_vl import Qwen25VL
from memocr_jax.models.rope import mrope_positions

LENGTH_MULTIPLE = 64
"""Rows are padded to a few lengths, the smallest being this, so that few programs are compiled."""
_SIZES = EngineConfig(groups=256, length_multiple=LENGTH_MULTIPLE, pool_sizes=1, length_sizes=1)
"""`generate` decodes up to so many rows at once, each a group of its own."""


def logits(
    model: Qwen25VL,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    pixel_values: np.ndarray | None = None,
    image_grid_thw: np.ndarray | None = None,
    **ignored: Any,
) -> Float[np.ndarray, "B L V"]:
    """Logits of every position, float32. Those at padding mean nothing.

    Args:
        model: from `memocr_jax.from_pretrained`.
        input_ids, attention_mask: [B, L]; padding (mask 0) may be anywhere.
        pixel_values: [N, features]; image_grid_thw: [images, 3], as the processor returns them.
        ignored: `mm_token_type_ids`, which follow from the ids; a video raises UserError.

    Raises:
        UserError: ids, mask, images and grids that do not fit together; video inputs.
    """
    _refuse(ignored)
    rows = pack_inputs(model.config, model.mesh, input_ids, attention_mask, pixel_values, image_grid_thw)
    count, width = np.asarray(input_ids).shape
    return np.asarray(forward(*nnx.split(model), rows))[:count, :width]


def generate(
    model: Qwen25VL,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    pixel_values: np.ndarray | None = None,
    image_grid_thw: np.ndarray | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    eos_token_id: int | tuple[int, ...] | None = None,
    pad_token_id: int | None = None,
    **ignored: Any,
) -> np.ndarray:
    """Continue every row: greedily (temperature 0) or by sampling.

    Args:
        model, input_ids, ...: as `logits`.
        max_new_tokens: longest continuation.
        temperature, top_p, top_k: of sampling; top_k 0 means all tokens. seed: of the random numbers.
        eos_token_id: tokens that end a row, default the checkpoint's. pad_token_id: fills ended rows,
            default the last of these.

    Returns:
        i64[B, L + T], T <= max_new_tokens: the prompts as given, then their continuations, as
        transformers' `generate` returns them.

    Raises:
        UserError: as `logits`, or nothing to generate.
    """
    _refuse(ignored)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; the smallest that works is 1")
    eos = model.config.eos_token_id if eos_token_id is None else eos_token_id
    eos = () if eos is None else tuple(np.atleast_1d(eos).tolist())
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, top_k=top_k)
    arrays = (input_ids, attention_mask, pixel_values, image_grid_thw)
    conversations = _conversations(model.config, *arrays)
    groups = [
        _group(row, prompt, images, seed, model.config) for row, (prompt, images) in enumerate(conversations)
    ]
    graphdef, params = nnx.split(model)
    mesh = model.mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    engine = _engine(graphdef, model.config, mesh, eos)
    completions = engine.generate(params, groups, max_new_tokens, sampling)
    rows = [completion.tokens for (completion,) in completions]
    pad = pad_token_id if pad_token_id is not None else (eos[-1] if eos else 0)
    new = np.full((len(rows), max(map(len, rows))), pad, np.int64)
    for out, tokens in zip(new, rows, strict=True):
        out[: len(tokens)] = tokens
    return np.concatenate([np.asarray(input_ids, np.int64), new], axis=1)


@functools.lru_cache(maxsize=4)
def _engine(graphdef: nnx.GraphDef, config: Qwen25VLConfig, mesh: Mesh, eos: tuple[int, ...]) -> Engine:
    """An engine, which holds compiled programs and no weights. Engines are kept for later calls."""
    return Engine(graphdef, config, mesh, _SIZES, eos)


def _group(
    row: int, prompt: np.ndarray, images: Sequence[Patches], seed: int, config: Qwen25VLConfig
) -> PromptGroup:
    """A prompt as a group of one; its last token, or its last images, are the sibling's own part."""
    if not len(prompt):
        raise UserError(f"row {row} of attention_mask is all padding; nothing to continue")
    words = np.flatnonzero(prompt != config.image_token_id)
    ends_with_word = len(words) and words[-1] == len(prompt) - 1
    cut = len(prompt) - 1 if ends_with_word else (int(words[-1]) + 1 if len(words) else 0)
    shared = _image_count(prompt[:cut], images, config)
    return PromptGroup(
        prompt[:cut],
        (prompt[cut:],),
        (row_key(seed, "generate", row),),
        images=tuple(images[:shared]),
        suffix_images=(tuple(images[shared:]),),
    )


class InputRows(NamedTuple):
    """Prompts as the arrays that the model takes."""

    tokens: Int32[Array, "B L"]
    mrope_pos: Int32[Array, "3 B L"]
    segments: Int32[Array, "B L"]
    image_slots: Int32[Array, "B L"] | None
    vision: VisionBatch | None


def pack_inputs(
    config: Qwen25VLConfig, mesh: Mesh | None, input_ids: Any, mask: Any, pixel_values: Any, grid_thw: Any
) -> InputRows:
    """Check the processor's arrays and lay them out, in the same places and padded on the right to a few
    sizes; see `logits`."""
    conversations = _conversations(config, input_ids, mask, pixel_values, grid_thw)
    count, width = np.asarray(input_ids).shape
    shards = 1 if mesh is None else batch_shards(mesh)
    packed = PackedRows.empty(-(-count // shards) * shards, bucket(width, LENGTH_MULTIPLE))
    images = [image for _, own in conversations for image in own]
    vision, slots = None, []
    if images:
        windows = most_windows(images, config.vision, 1)
        vision, slots = vision_batch(images, config.vision, windows, bucket(len(images), shards))
    placed = iter(map(PlacedImage, slots, (image.grid for image in images)))
    for row, (prompt, own) in enumerate(conversations):
        packed.place(row, prompt, [], [], config, [next(placed) for _ in own])
        if mask is not None:
            packed.spread(row, np.flatnonzero(np.asarray(mask)[row]))
    image_slots = packed.image_slots if images else None
    return InputRows(packed.tokens, packed.mrope_pos, packed.segments, image_slots, vision)


def _conversations(
    config: Qwen25VLConfig, input_ids: Any, mask: Any, pixel_values: Any, grid_thw: Any
) -> list[tuple[np.ndarray, list[Patches]]]:
    """The ids of every row without padding, and its images. Raises UserError for what does not fit."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"input_ids is {ids.dtype}{list(ids.shape)}; it must be integers [batch, length]")
    if ids.size and not 0 <= ids.min() <= ids.max() < config.text.vocab_size:
        raise UserError(f"input_ids has id {ids.max()}; the vocabulary has {config.text.vocab_size} entries")
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask is {list(mask.shape)}, but input_ids is {list(ids.shape)}")
    images = _images(config, pixel_values, grid_thw)
    rows, used = [], 0
    for row, kept in zip(ids, mask, strict=True):
        own = row[kept].astype(np.int32)
        count = _image_count(own, images[used:], config)
        mrope_positions(own, [image.grid for image in images[used : used + count]], config)  # raises
        rows.append((own, images[used : used + count]))
        used += count
    if used != len(images):
        raise UserError(f"{len(images)} images are given, but the ids have places for {used}")
    return rows


def _images(config: Qwen25VLConfig, pixel_values: Any, grid_thw: Any) -> list[Patches]:
    if (pixel_values is None) != (grid_thw is None):
        raise UserError("pixel_values and image_grid_thw belong together; only one of them is given")
    if pixel_values is None:
        return []
    pixels, grid_thw = np.asarray(pixel_values, np.float32), np.asarray(grid_thw)
    if (grid_thw[:, 0] != 1).any():
        raise UserError(f"image_grid_thw has {grid_thw[:, 0].max()} frames; videos are not supported")
    expected = (int(grid_thw.prod(-1).sum()), config.vision.patch_features)
    if pixels.shape != expected:
        raise UserError(f"pixel_values is {list(pixels.shape)}; image_grid_thw asks for {list(expected)}")
    ends = np.cumsum(grid_thw.prod(-1))
    values = np.split(pixels, ends[:-1])
    return [Patches(one, (int(r), int(c))) for one, (_, r, c) in zip(values, grid_thw, strict=True)]


def _image_count(ids: np.ndarray, images: Sequence[Patches], config: Qwen25VLConfig) -> int:
    """How many of the next images belong to the image tokens of these ids."""
    needed = int((ids == config.image_token_id).sum())
    sizes = np.cumsum([grid_tokens(image.grid, config.vision) for image in images])
    return int(np.searchsorted(sizes, needed)) + 1 if needed and images else 0


def _refuse(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if "video" in name and value is not None:
            raise UserError(f"{name} is given: videos are not supported, only images and text")
        if "video" not in name and name != "mm_token_type_ids":
            raise UserError(
                f"{name} is not an argument of the model (input_ids, attention_mask, pixel_values, "
                "image_grid_thw)"
            )


def embed_rows(model: Qwen25VL, rows: InputRows) -> Float[Array, "B L D"]:
    """Input embeddings of `pack_inputs`' rows, image features in their places."""
    features = None if rows.vision is None else model.encode_images(rows.vision)
    return model.embed(rows.tokens, rows.image_slots, features)


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef: Any, params: nnx.State, rows: InputRows) -> Float[Array, "B L V"]:
    """Logits of `pack_inputs`' rows, on the device."""
    model = nnx.merge(graphdef, params)
    return model.head(model.hidden(embed_rows(model, rows), rows.mrope_pos, rows.segments))
