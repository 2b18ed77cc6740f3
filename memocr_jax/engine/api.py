"""Qwen2.5-VL in three functions, over numpy arrays exactly as transformers' processor returns them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memocr_jax.config import SamplingConfig
from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import row_key
from memocr_jax.core.sharding import batch_shards
from memocr_jax.core.types import VisionBatch
from memocr_jax.engine.sampling import sample_tokens
from memocr_jax.models.cache import cache_from_packed, per_layer
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import num_windows, pack_patches
from memocr_jax.models.qwen25_vl import Qwen25VL
from memocr_jax.models.rope import mrope_positions

LENGTH_MULTIPLE = 64
"""Rows are padded to a few lengths, the smallest being this, so that few executables are compiled."""


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
        ignored: `mm_token_type_ids`, which the ids say already; a video raises UserError.

    Raises:
        UserError: ids, mask, images and grids that do not fit together; video inputs.
    """
    _refuse(ignored)
    rows = pack_inputs(model.config, model.mesh, input_ids, attention_mask, pixel_values, image_grid_thw)
    out = forward(*nnx.split(model), rows)
    return np.asarray(out)[: input_ids.shape[0], : input_ids.shape[1]]


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
    # Prompts start at slot 0: the cache's valid slots come first.
    ids, lengths = _left_aligned(input_ids, attention_mask)
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    rows = pack_inputs(model.config, model.mesh, ids, mask, pixel_values, image_grid_thw)
    padded = np.ones(rows.tokens.shape[0], np.int32)
    padded[: len(lengths)] = lengths
    keys = np.zeros((len(padded), 2), np.uint32)
    keys[: len(lengths)] = [row_key(seed, "generate", row) for row in range(len(lengths))]
    tokens, counts = _generate(*nnx.split(model), rows, padded, keys, max_new_tokens, sampling, eos)
    tokens, counts = np.asarray(tokens)[: len(lengths)], np.asarray(counts)[: len(lengths)]
    pad = pad_token_id if pad_token_id is not None else (eos[-1] if eos else 0)
    new = np.where(np.arange(tokens.shape[1]) < counts[:, None], tokens, pad)[:, : counts.max()]
    return np.concatenate([np.asarray(input_ids, np.int64), new.astype(np.int64)], axis=1)


class Rows(NamedTuple):
    """Prompts on their way to the model."""

    tokens: Int32[Array, "B L"]
    mrope_pos: Int32[Array, "3 B L"]
    segments: Int32[Array, "B L"]
    image_slots: Int32[Array, "B L"] | None
    vision: VisionBatch | None


def pack_inputs(
    config: Qwen25VLConfig, mesh: Mesh | None, input_ids: Any, mask: Any, pixel_values: Any, grid_thw: Any
) -> Rows:
    """Check the processor's arrays and lay them out, padded to bucketed sizes; see `logits`."""
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"input_ids is {ids.dtype}{list(ids.shape)}; it must be integers [batch, length]")
    if ids.size and not 0 <= ids.min() <= ids.max() < config.text.vocab_size:
        raise UserError(f"input_ids has id {ids.max()}; the vocabulary has {config.text.vocab_size} entries")
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask is {list(mask.shape)}, but input_ids is {list(ids.shape)}")
    patches, grids = _images(config, pixel_values, grid_thw)
    shards = 1 if mesh is None else batch_shards(mesh)
    batch = -(-ids.shape[0] // shards) * shards
    length = bucket(ids.shape[1], LENGTH_MULTIPLE)
    tokens = np.zeros((batch, length), np.int32)
    positions = np.zeros((3, batch, length), np.int32)
    segments = np.full((batch, length), -1, np.int32)
    image_slots = np.full((batch, length), -1, np.int32)

    vision, slots = None, []
    if patches:
        patch = config.vision.patch_size
        windows = bucket(max(num_windows(r * patch, c * patch, config.vision) for r, c in grids))
        vision, slots = pack_patches(patches, grids, config.vision, windows, bucket(len(grids), shards))
    used = 0
    for row in range(ids.shape[0]):
        at = np.flatnonzero(mask[row])
        own = ids[row, at]
        count = _image_count(own, grids[used:], config)
        is_image = own == config.image_token_id
        tokens[row, at], segments[row, at] = own, 0
        positions[:, row, at] = mrope_positions(own, grids[used : used + count], config)
        image_slots[row, at[is_image]] = np.concatenate([np.zeros(0, np.int32), *slots[used : used + count]])
        used += count
    if used != len(grids):
        raise UserError(f"{len(grids)} images are given, but the ids have places for {used}")
    return Rows(tokens, positions, segments, image_slots if patches else None, vision)


def _images(
    config: Qwen25VLConfig, pixel_values: Any, grid_thw: Any
) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """The patches and the grid of every image."""
    if (pixel_values is None) != (grid_thw is None):
        raise UserError("pixel_values and image_grid_thw belong together; only one of them is given")
    if pixel_values is None:
        return [], []
    pixels, grid_thw = np.asarray(pixel_values, np.float32), np.asarray(grid_thw)
    if (grid_thw[:, 0] != 1).any():
        raise UserError(f"image_grid_thw has {grid_thw[:, 0].max()} frames; videos are not supported")
    expected = (int(grid_thw.prod(-1).sum()), config.vision.patch_features)
    if pixels.shape != expected:
        raise UserError(f"pixel_values is {list(pixels.shape)}; image_grid_thw asks for {list(expected)}")
    ends = np.cumsum(grid_thw.prod(-1))
    return np.split(pixels, ends[:-1]), [(int(r), int(c)) for _, r, c in grid_thw]


def _image_count(ids: np.ndarray, grids: list[tuple[int, int]], config: Qwen25VLConfig) -> int:
    """How many of the images to come account for the image tokens of this row."""
    needed = int((ids == config.image_token_id).sum())
    sizes = np.cumsum([r * c // config.vision.merge_unit for r, c in grids])
    return int(np.searchsorted(sizes, needed)) + 1 if needed and len(grids) else 0


def _left_aligned(input_ids: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows without their padding, padded again on the right, and their lengths."""
    ids = np.asarray(input_ids)
    mask = np.ones(ids.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask is {list(mask.shape)}, but input_ids is {list(ids.shape)}")
    lengths = mask.sum(-1)
    if (lengths == 0).any():
        raise UserError(
            f"row {int(np.argmin(lengths))} of attention_mask is all padding; nothing to continue"
        )
    order = np.argsort(~mask, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), lengths


def _refuse(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if "video" in name and value is not None:
            raise UserError(f"{name} is given: videos are not supported, only images and text")
        if "video" not in name and name != "mm_token_type_ids":
            raise UserError(
                f"{name} is not an argument of the model (input_ids, attention_mask, pixel_values, "
                "image_grid_thw)"
            )


def embed_rows(model: Qwen25VL, rows: Rows) -> Float[Array, "B L D"]:
    """Input embeddings of `pack_inputs`' rows, image features in their places."""
    features = None if rows.vision is None else model.encode_images(rows.vision)
    return model.embed(rows.tokens, rows.image_slots, features)


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef: Any, params: nnx.State, rows: Rows) -> Float[Array, "B L V"]:
    """Logits of `pack_inputs`' rows, on the device."""
    model = nnx.merge(graphdef, params)
    return model.head(model.hidden(embed_rows(model, rows), rows.mrope_pos, rows.segments))


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _generate(
    graphdef: Any,
    params: nnx.State,
    rows: Rows,
    lengths: Int32[Array, "B"],
    keys: Array,
    max_new_tokens: int,
    sampling: SamplingConfig,
    eos_ids: tuple[int, ...],
) -> tuple[Int32[Array, "B T"], Int32[Array, "B"]]:
    """Sampled tokens and how many of each row count."""
    model = nnx.merge(graphdef, params)
    hidden, (k, v) = model.hidden(embed_rows(model, rows), rows.mrope_pos, rows.segments, return_kv=True)
    batch, slots = rows.tokens.shape
    # A group of one sibling per row, whose whole prompt is the prefix.
    cache = cache_from_packed(
        k,
        v,
        prefix_slots=slots,
        siblings=1,
        suffix_slots=0,
        capacity=max_new_tokens,
        prefix_len=lengths,
        suffix_len=jnp.zeros((batch, 1), jnp.int32),
    )
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    following = rows.mrope_pos.max((0, 2)) + 1
    copy = model.decoding_copy() if jax.default_backend() == "cpu" else None
    if copy is not None:
        cache = cache.map_layers(lambda _, layers: per_layer(layers))
    eos = jnp.array(eos_ids, jnp.int32)

    def take(state, row_logits):
        tokens, counts, done, step = state
        new, _ = sample_tokens(row_logits, keys, step, sampling, eos_ids)
        tokens = tokens.at[:, step].set(new)
        counts = counts + ~done
        done |= jnp.isin(new, eos)
        return (tokens, counts, done, step + 1)

    def more(carry):
        _, (_, _, done, step) = carry
        return ~done.all() & (step < max_new_tokens)

    def one(carry):
        cache, state = carry
        token = jax.lax.dynamic_index_in_dim(state[0], state[3] - 1, 1, keepdims=False)
        positions = jnp.broadcast_to(following + state[3] - 1, (3, batch))
        row_logits, cache = model.decode(token, positions, cache, copy)
        return cache, take(state, row_logits)

    empty = (
        jnp.zeros((batch, max_new_tokens), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        rows.segments[:, 0] < 0,  # rows that only fill the mesh
        jnp.zeros((), jnp.int32),
    )
    _, (tokens, counts, _, _) = jax.lax.while_loop(more, one, (cache, take(empty, model.head(last))))
    return tokens, counts
