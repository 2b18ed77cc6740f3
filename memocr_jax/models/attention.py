"""Attention behind one interface. An argument chooses the implementation; the machine never does.

There are three uses: `packed` (training and prefill of rows [prefix | siblings]), `bidirectional` (vision),
and `decode` (one token per row over a shared prefix cache and its own suffix cache). Scores and softmax are
float32.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from memocr_jax.core.errors import UserError
from memocr_jax.core.types import RowLayout
from memocr_jax.models.attention_cudnn import causal_cudnn, flash_cudnn
from memocr_jax.models.attention_cudnn import require_internals as require_cudnn
from memocr_jax.models.attention_parts import (
    MASKED,
    default_query_chunk,
    flash_xla,
    join_queries,
    shared_prefix,
    split_queries,
)
from memocr_jax.models.attention_splash import packed_splash
from memocr_jax.models.attention_splash import require_internals as require_splash

Implementation = Literal["xla", "cudnn", "splash"]
"""What computes rows of known layout: plain operations (xla, runs everywhere), cuDNN's flash attention (GPU),
or splash attention (TPU). All other attention is computed by plain operations."""


def visible(
    query_segments: Int32[Array, "B q"],
    key_segments: Int32[Array, "B k"],
    first_query: int | Array = 0,
) -> Bool[Array, "B q k"]:
    """Which keys a query of a packed row sees: not later, and in the prefix (0) or its own sibling.

    `first_query` is the row index of the first query; the first key has row index 0. Padding is -1.
    """
    query_index = first_query + jnp.arange(query_segments.shape[1])
    causal = jnp.arange(key_segments.shape[1])[None, :] <= query_index[:, None]
    keys, queries = key_segments[:, None, :], query_segments[:, :, None]
    return causal[None] & (keys >= 0) & ((keys == 0) | (keys == queries))


def packed(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L kv_heads dim"],
    v: Float[Array, "B L kv_heads dim"],
    segments: Int32[Array, "B L"],
    *,
    layout: RowLayout | None = None,
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B L heads dim"]:
    """Attention within packed rows: prefix 0, siblings >= 1, padding -1 (see `visible`).

    Grouped-query: kv head h serves query heads h * group .. (h + 1) * group - 1.

    Args:
        layout: the layout of all rows. Without it rows may be laid out differently, and every implementation
            computes what xla computes.
        mesh: the devices over which rows and heads are split (splash runs on each by itself).
    """
    check_implementation(implementation)
    length = q.shape[1]
    if layout is not None and layout.prefix + layout.siblings * layout.own != length:
        raise ValueError(f"{layout} is not that of rows of {length} slots")
    if layout is not None and implementation == "splash":
        return packed_splash(q, k, v, segments, layout, mesh)
    if layout is not None and (implementation == "cudnn" or layout.siblings > 1):
        return _by_parts(q, k, v, segments, layout, implementation, query_chunk)
    return _masked(q, k, v, segments, query_chunk)


def check_implementation(implementation: str) -> None:
    """Raise ValueError for a name that is not an implementation."""
    if implementation not in get_args(Implementation):
        names = ", ".join(get_args(Implementation))
        raise ValueError(f"attention implementation {implementation!r} is not one of: {names}")


def require_backend(implementation: str, backend: str, dtype: str) -> None:
    """Raise UserError when `model.attention` cannot run on this backend (`jax.default_backend()`), or with
    this version of JAX."""
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(implementation)
    if needs not in (None, backend):
        raise UserError(
            f"model.attention is {implementation}, which needs a {needs.upper()}; this machine's JAX has a "
            f"{backend.upper()}: set it to xla"
        )
    if implementation == "cudnn" and dtype != "bfloat16":
        raise UserError(
            f"model.attention is cudnn and model.dtype {dtype}: cuDNN's attention is for bfloat16; change "
            "one of the two"
        )
    if needs is not None:
        {"cudnn": require_cudnn, "splash": require_splash}[implementation]()


BANDS = 8
"""A long row's queries are computed in so many parts, each a program of its own that sees the keys up to the
end of the part. With 8 parts an eighth more scores are computed than needed; one program for each of 32
chunks took minutes to compile."""


def _masked(q: Array, k: Array, v: Array, segments: Array, query_chunk: int | None) -> Array:
    """`packed` with the mask written out, a few queries at a time."""
    length = q.shape[1]
    size = query_chunk or default_query_chunk(length)
    chunks = -(-length // size)
    step = size * -(-chunks // BANDS)
    outputs = []
    for start in range(0, length, step):
        end = min(start + step, length)
        # No key after the band's last query is seen.
        keys, values, key_segments = k[:, :end], v[:, :end], segments[:, :end]

        def one(_, chunk, keys=keys, values=values, key_segments=key_segments):
            queries, query_segments, first = chunk
            mask = visible(query_segments, key_segments, first_query=first)
            return None, _attend(queries, keys, values, mask)

        if chunks <= BANDS:
            outputs.append(one(None, (q[:, start:end], segments[:, start:end], start))[1])
        else:
            firsts = start + size * jnp.arange(-(-(end - start) // size))
            parts = (split_queries(x[:, start:end], size) for x in (q, segments))
            outputs.append(join_queries(jax.lax.scan(one, None, (*parts, firsts))[1], end - start))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _by_parts(
    q: Array,
    k: Array,
    v: Array,
    segments: Array,
    layout: RowLayout,
    implementation: str,
    query_chunk: int | None,
) -> Array:
    """`packed` as three products without a mask of their own: prefix with itself, siblings with the prefix,
    and each sibling with itself; the last two are merged. Scores between siblings are never computed: K (P +
    S) S scores instead of (P + K S)^2 / 2."""
    batch, heads_dim = q.shape[0], q.shape[2:]
    prefix, siblings, own = layout.prefix, layout.siblings, layout.own
    kernel = {"xla": flash_xla, "cudnn": flash_cudnn}[implementation]
    prefix_len = (segments[:, :prefix] >= 0).sum(-1)
    if implementation == "cudnn":
        first = causal_cudnn(*(x[:, :prefix] for x in (q, k, v)), prefix_len)
    else:
        first = _masked(*(x[:, :prefix] for x in (q, k, v)), segments[:, :prefix], query_chunk)
    if not siblings:
        return first
    own_len = (segments[:, prefix:] >= 0).reshape(batch * siblings, own).sum(-1)

    def apart(x: Array) -> Array:
        return x[:, prefix:].reshape(batch, siblings, own, *x.shape[2:])

    rest = shared_prefix(
        apart(q),
        k[:, :prefix],
        v[:, :prefix],
        prefix_len,
        apart(k),
        apart(v),
        own_len.reshape(batch, siblings),
        kernel,
    )
    return jnp.concatenate([first, rest.reshape(batch, siblings * own, *heads_dim)], axis=1)


def bidirectional(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L heads dim"],
    v: Float[Array, "B L heads dim"],
    valid: Bool[Array, "B L"],
    groups: Int32[Array, "B L"] | None = None,
    *,
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
) -> Float[Array, "B L heads dim"]:
    """Every query sees every valid key of its row, or (with `groups`) of its group in the row.

    It is the same for every implementation: a window may have padding anywhere, which flash kernels do not
    accept, and windows are short.
    """
    check_implementation(implementation)
    length = q.shape[1]
    query_chunk = query_chunk or default_query_chunk(length)

    def mask(start: int) -> Array:
        if groups is None:
            return valid[:, None, :]
        same = groups[:, start : start + query_chunk, None] == groups[:, None, :]
        return same & valid[:, None, :]

    starts = range(0, length, query_chunk)
    chunks = [_attend(q[:, s : s + query_chunk], k, v, mask(s)) for s in starts]
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=1)


def decode(
    q: Float[Array, "R heads dim"],
    prefix_k: Float[Array, "Q kv_heads dim P"],
    prefix_v: Float[Array, "Q kv_heads P dim"],
    prefix_valid: Bool[Array, "Q P"],
    suffix_k: Float[Array, "R kv_heads dim T"],
    suffix_v: Float[Array, "R kv_heads T dim"],
    suffix_valid: Bool[Array, "R T"],
    members: Int32[Array, "Q K"],
    place: Int32[Array, "R"],
) -> Float[Array, "R heads dim"]:
    """One query per row over its group's shared prefix and its own suffix.

    `members` and `place` say which rows belong to which group (`cache.DecodeCache`). A prefix is read once
    for all rows of its group, and the two softmaxes are merged so that the result equals attention over the
    concatenation (arXiv 2402.05099, section 3.2).
    """
    rows, heads, dim = q.shape
    groups, siblings = members.shape
    kv_heads, f32 = prefix_k.shape[1], jnp.float32
    q = q.reshape(rows, kv_heads, heads // kv_heads, dim)
    near = jnp.einsum("RhgD,RhDT->RhgT", q, suffix_k, preferred_element_type=f32) * dim**-0.5
    near = jnp.where(suffix_valid[:, None, None, :], near, MASKED)
    # Queries by group: a sibling that is not there takes another row's query, and its result is not used.
    together = q[jnp.minimum(members, rows - 1)]
    far = jnp.einsum("QKhgD,QhDP->QKhgP", together, prefix_k, preferred_element_type=f32) * dim**-0.5
    far = jnp.where(prefix_valid[:, None, None, None, :], far, MASKED)
    # The prefix part has a maximum of its own (P may be 0), so that only small arrays are reordered.
    far_top = far.max(-1, keepdims=True, initial=MASKED)
    far = jnp.exp(far - far_top)
    far_out = jnp.einsum("QKhgP,QhPD->QKhgD", far.astype(q.dtype), prefix_v, preferred_element_type=f32)

    def by_row(x: Array) -> Array:
        return x.reshape(groups * siblings, *x.shape[2:])[place]

    far_top, far_total, far_out = by_row(far_top), by_row(far.sum(-1, keepdims=True)), by_row(far_out)
    near_top = near.max(-1, keepdims=True)
    near = jnp.exp(near - near_top)
    near_out = jnp.einsum("RhgT,RhTD->RhgD", near.astype(q.dtype), suffix_v, preferred_element_type=f32)
    top = jnp.maximum(near_top, far_top)
    # A part without a valid key has the maximum MASKED, so its share is 0.
    near_share, far_share = jnp.exp(near_top - top), jnp.exp(far_top - top)
    total = near.sum(-1, keepdims=True) * near_share + far_total * far_share
    out = (near_out * near_share + far_out * far_share) / total
    return out.reshape(rows, heads, dim).astype(q.dtype)


# The backward pass computes the scores again: keeping them costs more, in memory and (measured) in time.
@jax.checkpoint
def _attend(
    q: Float[Array, "B q heads dim"],
    k: Float[Array, "B k kv_heads dim"],
    v: Float[Array, "B k kv_heads dim"],
    mask: Bool[Array, "B #q k"],
) -> Float[Array, "B q heads dim"]:
    """Masked grouped-query attention with all scores of the given queries at once."""
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * dim**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(batch, queries, heads, dim)
