"""The functions that run on the device: prompts are prefilled, inserted into a pool of rows, and decoded.

The pool is a fixed number of rows (siblings) and of groups (their prefixes). A prefix is computed once in
prefill and read once per decoded token, whatever the number of siblings (Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt32

from memocr_jax.config import SamplingConfig
from memocr_jax.core.types import RowLayout, VisionBatch
from memocr_jax.engine.sampling import RowSampling, sample_tokens
from memocr_jax.models.cache import DecodeCache, split_packed
from memocr_jax.models.packing import PackedRows


class Prompts(NamedTuple):
    """n groups as arrays, rows of [P prefix slots | K x S suffix slots], and where they go in the pool."""

    tokens: Int32[Array, "n L"]
    mrope_pos: Int32[Array, "n 3 L"]
    segments: Int32[Array, "n L"]
    image_slots: Int32[Array, "n L"]
    prefix_len: Int32[Array, "n"]
    suffix_len: Int32[Array, "n K"]
    """0 for a sibling that is not there."""
    next_pos: Int32[Array, "n K"]
    """Position of the first sampled token."""
    keys: UInt32[Array, "n K 2"]
    sampling: RowSampling
    """Each [n, K]."""
    limit: Int32[Array, "n K"]
    """Longest completion."""
    groups: Int32[Array, "n"]
    """Place of each group in the pool; beyond its end for padding."""
    rows: Int32[Array, "n K"]
    """Row of each sibling in the pool; beyond its end for padding."""


def empty_prompts(
    size: int, siblings: int, prefix: int, suffix: int, pool: tuple[int, int]
) -> tuple[Prompts, PackedRows]:
    """Room for `size` groups as numpy arrays, all of it padding: to be filled in place.

    The packed rows are the first four fields of the prompts, for `PackedRows.place`. `pool` is the
    number of rows and groups of the pool that the prompts go to.
    """
    packed, each = PackedRows.empty(size, prefix + siblings * suffix), (size, siblings)
    prompts = Prompts(
        tokens=packed.tokens,
        mrope_pos=packed.mrope_pos.transpose(1, 0, 2),
        segments=packed.segments,
        image_slots=packed.image_slots,
        prefix_len=np.zeros(size, np.int32),
        suffix_len=np.zeros(each, np.int32),
        next_pos=np.zeros(each, np.int32),
        keys=np.zeros((*each, 2), np.uint32),
        sampling=RowSampling(*(np.broadcast_to(x, each).copy() for x in RowSampling.of(SamplingConfig()))),
        limit=np.ones(each, np.int32),
        # Past the pool's end, where nothing is written.
        groups=np.full(size, pool[1], np.int32),
        rows=np.full(each, pool[0], np.int32),
    )
    return prompts, packed


class Prefilled(NamedTuple):
    """Keys and values of prompts, and the first token of every sibling."""

    k: Float[Array, "layers n L kv_heads dim"]
    v: Float[Array, "layers n L kv_heads dim"]
    token: Int32[Array, "n K"]
    logp: Float[Array, "n K"]


class Pool(NamedTuple):
    """The rows that are being decoded, between two tokens."""

    cache: DecodeCache
    last: Int32[Array, "R"]
    next_pos: Int32[Array, "R"]
    keys: UInt32[Array, "R 2"]
    sampling: RowSampling
    limit: Int32[Array, "R"]
    tokens: Int32[Array, "R T"]
    logp: Float[Array, "R T"]
    lengths: Int32[Array, "R"]
    """Tokens sampled so far."""
    done: Bool[Array, "R"]


def empty_pool(
    rows: int,
    groups: int,
    *,
    siblings: int,
    prefix: int,
    capacity: int,
    max_new_tokens: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any,
    per_layer: bool,
) -> Pool:
    """A pool in which no row is in use. `per_layer`: the cache has one array per layer."""

    def kv(count: int, slots: int, keys: bool) -> Any:
        shape = (count, kv_heads, head_dim, slots) if keys else (count, kv_heads, slots, head_dim)
        if per_layer:
            return tuple(jnp.zeros(shape, dtype) for _ in range(layers))
        return jnp.zeros((layers, *shape), dtype)

    def i32(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.int32)

    def f32(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.float32)

    cache = DecodeCache(
        prefix_k=kv(groups, prefix, True),
        prefix_v=kv(groups, prefix, False),
        prefix_len=i32(groups),
        suffix_k=kv(rows, capacity, True),
        suffix_v=kv(rows, capacity, False),
        suffix_len=i32(rows),
        members=jnp.full((groups, siblings), rows, jnp.int32),
        place=i32(rows),
    )
    return Pool(
        cache=cache,
        last=i32(rows),
        next_pos=i32(rows),
        keys=jnp.zeros((rows, 2), jnp.uint32),
        sampling=RowSampling(f32(rows), f32(rows), i32(rows), i32(rows)),
        limit=i32(rows),
        tokens=i32(rows, max_new_tokens),
        logp=f32(rows, max_new_tokens),
        lengths=i32(rows),
        done=jnp.ones(rows, bool),
    )


def encode(graphdef: nnx.GraphDef, params: nnx.State, vision: VisionBatch) -> tuple[Array, ...]:
    """Features [slots, D] of every image of a batch, each an array of its own, so that it can be freed once
    the last prompt that shows the image has been prefilled."""
    features = nnx.merge(graphdef, params).encode_images(vision)
    return tuple(features[i] for i in range(features.shape[0]))


def prefill(
    graphdef: nnx.GraphDef,
    eos_ids: tuple[int, ...],
    params: nnx.State,
    prompts: Prompts,
    features: tuple[Array, ...],
    *,
    prefix_slots: int,
) -> Prefilled:
    """Compute prompts and sample the first token of every sibling.

    `features` are those that `prompts.image_slots` points into, empty without images.
    """
    model = nnx.merge(graphdef, params)
    count, siblings = prompts.suffix_len.shape
    suffix_slots = (prompts.tokens.shape[1] - prefix_slots) // siblings
    embeds = model.embed(
        prompts.tokens,
        prompts.image_slots if features else None,
        jnp.stack(features) if features else None,
    )
    hidden, (k, v) = model.hidden(
        embeds,
        prompts.mrope_pos.transpose(1, 0, 2),
        prompts.segments,
        return_kv=True,
        layout=RowLayout(prefix_slots, siblings, suffix_slots),
    )
    ends = prefix_slots + jnp.arange(siblings) * suffix_slots + jnp.maximum(prompts.suffix_len, 1) - 1
    logits = model.head(jnp.take_along_axis(hidden, ends[:, :, None], axis=1))

    def flat(x: Array) -> Array:
        return x.reshape(count * siblings, *x.shape[2:])

    token, logp = sample_tokens(
        flat(logits), flat(prompts.keys), jnp.int32(0), jax.tree.map(flat, prompts.sampling), eos_ids
    )
    return Prefilled(k, v, token.reshape(count, siblings), logp.reshape(count, siblings))


def insert(
    eos_ids: tuple[int, ...], pool: Pool, prompts: Prompts, prefilled: Prefilled, *, prefix_slots: int
) -> Pool:
    """Put prefilled groups into their places of the pool."""
    siblings = prompts.suffix_len.shape[1]
    rows, groups = prompts.rows.reshape(-1), prompts.groups

    def flat(x: Array) -> Array:
        return x.reshape(rows.shape[0], *x.shape[2:])

    parts = {
        "k": split_packed(prefilled.k, prefix_slots, siblings, keys=True),
        "v": split_packed(prefilled.v, prefix_slots, siblings, keys=False),
    }

    def put(name: str, layers: Any) -> Any:
        new = parts[name[-1]][0 if name.startswith("prefix") else 1]
        at = groups if name.startswith("prefix") else rows
        slots = slice(new.shape[-1] if name[-1] == "k" else new.shape[-2])
        where = (slice(None), slice(None), slots) if name[-1] == "k" else (slice(None), slots)
        if isinstance(layers, tuple):
            return tuple(x.at[(at, *where)].set(new[i], mode="drop") for i, x in enumerate(layers))
        return layers.at[(slice(None), at, *where)].set(new, mode="drop")

    def into(old: Array, new: Array) -> Array:
        return old.at[rows].set(flat(new), mode="drop")

    cache = pool.cache.map_layers(put)
    cache = cache._replace(
        prefix_len=cache.prefix_len.at[groups].set(prompts.prefix_len, mode="drop"),
        suffix_len=into(cache.suffix_len, prompts.suffix_len),
        members=cache.members.at[groups].set(prompts.rows, mode="drop"),
        place=into(cache.place, groups[:, None] * siblings + jnp.arange(siblings)),
    )
    # What was in a row before is overwritten.
    tokens = jnp.zeros((rows.shape[0], pool.tokens.shape[1]), jnp.int32).at[:, 0].set(flat(prefilled.token))
    logp = jnp.zeros((rows.shape[0], pool.logp.shape[1]), jnp.float32).at[:, 0].set(flat(prefilled.logp))
    return pool._replace(
        cache=cache,
        last=into(pool.last, prefilled.token),
        next_pos=into(pool.next_pos, prompts.next_pos),
        keys=into(pool.keys, prompts.keys),
        sampling=jax.tree.map(into, pool.sampling, prompts.sampling),
        limit=into(pool.limit, prompts.limit),
        tokens=pool.tokens.at[rows].set(tokens, mode="drop"),
        logp=pool.logp.at[rows].set(logp, mode="drop"),
        lengths=into(pool.lengths, jnp.ones_like(prefilled.token)),
        done=into(pool.done, _is_last(prefilled.token, 1, prompts.limit, eos_ids)),
    )


def decode(
    graphdef: nnx.GraphDef,
    copy_graphdef: nnx.GraphDef | None,
    eos_ids: tuple[int, ...],
    segment: int,
    pool: Pool,
    params: nnx.State,
    copy: nnx.State | None,
    enough: Int32[Array, ""],
) -> Pool:
    """Sample on in every row that is not done: up to `segment` tokens, fewer when no more than `enough` rows
    are left (but at least one).

    `copy` is the state of `Qwen25VL.decoding_copy`, or None.
    """
    model = nnx.merge(graphdef, params)
    weights = None if copy is None else nnx.merge(copy_graphdef, copy)

    def more(carry: tuple[Pool, Array]) -> Array:
        pool, steps = carry
        left = (~pool.done).sum()
        return (left > 0) & (steps < segment) & ((left > enough) | (steps == 0))

    def one(carry: tuple[Pool, Array]) -> tuple[Pool, Array]:
        pool, steps = carry
        positions = jnp.broadcast_to(pool.next_pos, (3, *pool.next_pos.shape))
        logits, cache = model.decode(pool.last, positions, pool.cache, weights)
        token, logp = sample_tokens(logits, pool.keys, pool.lengths, pool.sampling, eos_ids)
        going = ~pool.done
        # Rows that are done stay as they are; what this step writes into them is never read.
        cache = cache._replace(suffix_len=jnp.where(going, cache.suffix_len, pool.cache.suffix_len))
        slot = (jnp.arange(token.shape[0]), jnp.where(going, pool.lengths, pool.tokens.shape[1]))
        lengths = pool.lengths + going
        pool = pool._replace(
            cache=cache,
            last=token,
            next_pos=pool.next_pos + going,
            tokens=pool.tokens.at[slot].set(token, mode="drop"),
            logp=pool.logp.at[slot].set(logp, mode="drop"),
            lengths=lengths,
            done=pool.done | _is_last(token, lengths, pool.limit, eos_ids),
        )
        return pool, steps + 1

    return jax.lax.while_loop(more, one, (pool, jnp.int32(0)))[0]


def _is_last(token: Array, length: Array | int, limit: Array, eos_ids: tuple[int, ...]) -> Array:
    return jnp.isin(token, jnp.array(eos_ids, jnp.int32)) | (length >= limit)


class Move(NamedTuple):
    """The rows and groups of a pool that move to a smaller one; padded at the end."""

    rows: Int32[Array, "r"]
    live: Bool[Array, "r"]
    groups: Int32[Array, "q"]
    members: Int32[Array, "q K"]
    """In the numbering of the smaller pool, as `place`."""
    place: Int32[Array, "r"]


def shrink(pool: Pool, move: Move) -> Pool:
    """The rows that are not done, in a smaller pool."""

    def take(name: str, layers: Any) -> Any:
        at = move.groups if name.startswith("prefix") else move.rows
        if isinstance(layers, tuple):
            return tuple(x[at] for x in layers)
        return layers[:, at]

    cache = pool.cache.map_layers(take)
    cache = cache._replace(
        prefix_len=cache.prefix_len[move.groups],
        suffix_len=cache.suffix_len[move.rows],
        members=move.members,
        place=move.place,
    )
    rest = jax.tree.map(lambda x: x[move.rows], pool._replace(cache=()))
    return rest._replace(cache=cache, done=rest.done | ~move.live)


def stop(pool: Pool, rows: Bool[Array, "R"]) -> Pool:
    """End some rows where they are."""
    return pool._replace(done=pool.done | rows)


def bind(function: Any, *static: Any) -> Any:
    """`function` with its first arguments fixed, under its own name (which profiles show)."""
    return functools.update_wrapper(functools.partial(function, *static), function)
