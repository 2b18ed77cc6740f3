"""Attention behind one interface; the implementation is chosen by an argument, never by what is found.

Three uses: `packed` (training and prefill of rows [prefix | siblings]), `bidirectional` (vision), and
`decode` (one token per sibling over a shared prefix cache and its own suffix cache).
Scores and softmax are float32.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

Implementation = Literal["xla"]
"""xla: chunked over queries, runs everywhere."""

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of an invisible key: finite, so a query that sees nothing (padding) gives a number, not NaN."""


def default_query_chunk(length: int) -> int:
    """Queries whose scores exist at once in the XLA path; [heads, L, L] never does.

    Short rows: few enough that scores stay in a processor's cache (512 -> 128 made a forward pass over 512
    tokens 9% faster on one core). Long rows: few chunks, which are unrolled.
    """
    return 128 if length <= 2048 else 512


def visible(
    query_segments: Int32[Array, "B q"], key_segments: Int32[Array, "B k"], first_query: int = 0
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
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
) -> Float[Array, "B L heads dim"]:
    """Attention within packed rows: prefix 0, siblings >= 1, padding -1 (see `visible`).

    Grouped-query: kv head h serves query heads h * group .. (h + 1) * group - 1.
    """
    if implementation != "xla":
        raise ValueError(f"attention implementation {implementation!r} is not one of: xla")
    length = q.shape[1]
    query_chunk = query_chunk or default_query_chunk(length)
    outputs = []
    for start in range(0, length, query_chunk):
        end = min(start + query_chunk, length)
        mask = visible(segments[:, start:end], segments[:, :end], first_query=start)
        # No key after the chunk's last query is seen.
        outputs.append(_attend(q[:, start:end], k[:, :end], v[:, :end], mask))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def bidirectional(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L heads dim"],
    v: Float[Array, "B L heads dim"],
    valid: Bool[Array, "B L"],
    *,
    implementation: Implementation = "xla",
    query_chunk: int | None = None,
) -> Float[Array, "B L heads dim"]:
    """Every query sees every valid key of its row."""
    if implementation != "xla":
        raise ValueError(f"attention implementation {implementation!r} is not one of: xla")
    length = q.shape[1]
    query_chunk = query_chunk or default_query_chunk(length)
    mask = valid[:, None, :]
    chunks = [_attend(q[:, s : s + query_chunk], k, v, mask) for s in range(0, length, query_chunk)]
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

    `members` and `place` say which rows belong to which group (`cache.DecodeCache`). A prefix is read once for
    all rows of its group; the two softmaxes share one maximum and one denominator, so the result equals
    attention over the concatenation (arXiv 2402.05099, section 3.2).
    """
    rows, heads, dim = q.shape
    groups, siblings = members.shape
    kv_heads, f32 = prefix_k.shape[1], jnp.float32
    q = q.reshape(rows, kv_heads, heads // kv_heads, dim)
    near = jnp.einsum("RhgD,RhDT->RhgT", q, suffix_k, preferred_element_type=f32) * dim**-0.5
    near = jnp.where(suffix_valid[:, None, None, :], near, MASKED)
    # Queries by group: a sibling that is not there reads another row's query, and nobody reads its result.
    together = q[jnp.minimum(members, rows - 1)]
    far = jnp.einsum("QKhgD,QhDP->QKhgP", together, prefix_k, preferred_element_type=f32) * dim**-0.5
    far = jnp.where(prefix_valid[:, None, None, None, :], far, MASKED)
    # The far part has a maximum of its own (P may be 0), so that only small arrays go between the two orders.
    far_top = far.max(-1, keepdims=True, initial=MASKED)
    far = jnp.exp(far - far_top)
    far_out = jnp.einsum("QKhgP,QhPD->QKhgD", far.astype(q.dtype), prefix_v, preferred_element_type=f32)
    by_row = lambda x: x.reshape(groups * siblings, *x.shape[2:])[place]  # noqa: E731
    far_top, far_total, far_out = by_row(far_top), by_row(far.sum(-1, keepdims=True)), by_row(far_out)
    near_top = near.max(-1, keepdims=True)
    near = jnp.exp(near - near_top)
    near_out = jnp.einsum("RhgT,RhTD->RhgD", near.astype(q.dtype), suffix_v, preferred_element_type=f32)
    top = jnp.maximum(near_top, far_top)
    # A part of which nothing is valid has the maximum MASKED, and so the share 0.
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
