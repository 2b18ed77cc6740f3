"""Siblings attend to a shared prefix and to themselves: two parts, merged by their log-sum-exps.

The kernel of the two parts is an argument; `flash_xla`, of plain operations, runs everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""Score of an invisible key: finite, so a query that sees nothing (padding) gives a number, not NaN."""


def default_query_chunk(length: int) -> int:
    """The number of queries whose scores exist at once in the XLA path; [heads, L, L] never exists.

    Short rows: few enough that scores stay in a processor's cache (512 -> 128 made a forward pass over 512
    tokens 9% faster on one core). Long rows: large products.
    """
    return 128 if length <= 2048 else 512


Kernel = Callable[[Array, Array, Array, Array, bool], tuple[Array, Array]]
"""(q [B T heads dim], k [B S kv_heads dim], v, valid keys i32[B], causal) -> (output [B T heads dim], and the
log-sum-exp of the scaled scores, f32[B T heads]; very negative where no key is valid)."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def shared_prefix(
    q: Float[Array, "B K S heads dim"],
    prefix_k: Float[Array, "B P kv_heads dim"],
    prefix_v: Float[Array, "B P kv_heads dim"],
    prefix_len: Int32[Array, "B"],
    own_k: Float[Array, "B K S kv_heads dim"],
    own_v: Float[Array, "B K S kv_heads dim"],
    own_len: Int32[Array, "B K"],
    kernel: Kernel,
) -> Float[Array, "B K S heads dim"]:
    """Causal attention of siblings over their shared prefix and themselves, merged by log-sum-exp.

    `kernel` computes the two parts of the forward pass. It need not be differentiable: the merge depends on
    the log-sum-exp, whose gradient flash kernels leave out (cuDNN's drops it, XLA's form in jax.nn stops it),
    so the backward pass is written out here. It needs the total log-sum-exp only: with p = exp(s - lse), the
    gradient of a score is p (dO v - dO O) whichever part the key is in (arXiv 2205.14135, appendix B.2).
    """
    return _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel)[0]


def _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel):
    batch, siblings, own, heads, dim = q.shape
    together = q.reshape(batch, siblings * own, heads, dim)
    far, far_lse = kernel(together, prefix_k, prefix_v, prefix_len, False)

    def flat(x: Array) -> Array:
        return x.reshape(batch * siblings, *x.shape[2:])

    near, near_lse = kernel(flat(q), flat(own_k), flat(own_v), own_len.reshape(-1), True)
    near, near_lse = near.reshape(far.shape), near_lse.reshape(far_lse.shape)
    lse = jnp.logaddexp(far_lse, near_lse)
    f32 = jnp.float32
    out = far.astype(f32) * jnp.exp(far_lse - lse)[..., None]
    out += near.astype(f32) * jnp.exp(near_lse - lse)[..., None]
    return out.astype(q.dtype).reshape(q.shape), lse


def _shared_prefix_forward(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel):
    out, lse = _shared_prefix(q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, kernel)
    return out, (q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, out, lse)


def _shared_prefix_backward(kernel, kept, d_out):
    q, prefix_k, prefix_v, prefix_len, own_k, own_v, own_len, out, lse = kept
    batch, siblings, own, heads, _ = q.shape
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).reshape(lse.shape)

    def row(x: Array) -> Array:
        return x.reshape(batch, siblings * own, *x.shape[3:])

    def flat(x: Array) -> Array:
        return x.reshape(batch * siblings, *x.shape[2:])

    def by_own(x: Array) -> Array:
        return x.reshape(batch * siblings, own, heads)

    def like(gradient: Array, x: Array) -> Array:
        return gradient.reshape(x.shape).astype(x.dtype)

    far_q, d_prefix_k, d_prefix_v = _part_gradient(
        row(q), prefix_k, prefix_v, prefix_len, False, lse, row(d_out), delta
    )
    near_q, d_own_k, d_own_v = _part_gradient(
        flat(q), flat(own_k), flat(own_v), own_len.reshape(-1), True, by_own(lse), flat(d_out), by_own(delta)
    )
    d_q = (far_q.reshape(q.shape) + near_q.reshape(q.shape)).astype(q.dtype)
    return (
        d_q,
        like(d_prefix_k, prefix_k),
        like(d_prefix_v, prefix_v),
        None,
        like(d_own_k, own_k),
        like(d_own_v, own_v),
        None,
    )


shared_prefix.defvjp(_shared_prefix_forward, _shared_prefix_backward)


def _scores(q: Array, k: Array, valid: Array, causal: bool, first: Array) -> Float[Array, "B kv g q k"]:
    """Scaled scores of a chunk of queries, whose first is number `first` of its sequence; masked."""
    batch, count, heads, dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, count, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32) * dim**-0.5
    keys = jnp.arange(k.shape[1])
    seen = keys < valid[:, None, None]
    if causal:
        seen = seen & (keys <= (first + jnp.arange(count))[:, None])
    return jnp.where(seen[:, None, None], scores, MASKED)


def split_queries(x: Float[Array, "B T ..."], size: int) -> Float[Array, "n B c ..."]:
    """Queries in chunks of `size`, for a scan; the last is padded with zeros."""
    count = -(-x.shape[1] // size)
    x = jnp.pad(x, [(0, 0), (0, count * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)


def join_queries(x: Float[Array, "n B c ..."], length: int) -> Float[Array, "B T ..."]:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def flash_xla(q: Array, k: Array, v: Array, valid: Array, causal: bool) -> tuple[Array, Array]:
    """`Kernel` in plain operations, a few queries at a time."""
    length = q.shape[1]
    size = min(length, default_query_chunk(length))
    firsts = jnp.arange(0, length, size)

    def one(_, chunk):
        q, first = chunk
        scores = _scores(q, k, valid, causal, first)
        top = scores.max(-1, initial=MASKED)
        weights = jnp.exp(scores - top[..., None])
        total = weights.sum(-1)
        out = jnp.einsum("bhgqk,bkhd->bqhgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        # Where no key is valid the scores are all MASKED: the part's share in a merge is 0 or does not count.
        total = jnp.maximum(total, 1e-30)
        out = out / jnp.moveaxis(total, 3, 1)[..., None]
        lse = jnp.moveaxis(top + jnp.log(total), 3, 1)
        return None, (out.reshape(*q.shape), lse.reshape(*q.shape[:3]))

    _, (out, lse) = jax.lax.scan(one, None, (split_queries(q, size), firsts))
    return join_queries(out, length), join_queries(lse, length)


def _part_gradient(
    q: Array, k: Array, v: Array, valid: Array, causal: bool, lse: Array, d_out: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v of one part, given the log-sum-exp over all parts; float32."""
    _, length, heads, dim = q.shape
    kv_heads, f32 = k.shape[2], jnp.float32
    size = min(length, default_query_chunk(length))
    firsts = jnp.arange(0, length, size)

    def grouped(x: Array) -> Array:
        return x.reshape(*x.shape[:2], kv_heads, heads // kv_heads, *x.shape[3:])

    def to_scores(x: Array) -> Array:
        return jnp.moveaxis(grouped(x), 1, 3)[..., None]

    def one(carry, chunk):
        d_k, d_v = carry
        q, lse, d_out, delta, first = chunk
        scores = _scores(q, k, valid, causal, first)
        weights = jnp.where(scores == MASKED, 0.0, jnp.exp(scores - to_scores(lse)))
        d_out = grouped(d_out)
        d_v += jnp.einsum("bhgqk,bqhgd->bkhd", weights.astype(v.dtype), d_out, preferred_element_type=f32)
        d_weights = jnp.einsum("bqhgd,bkhd->bhgqk", d_out, v, preferred_element_type=f32)
        d_scores = (weights * (d_weights - to_scores(delta)) * dim**-0.5).astype(q.dtype)
        d_q = jnp.einsum("bhgqk,bkhd->bqhgd", d_scores, k, preferred_element_type=f32)
        d_k += jnp.einsum("bhgqk,bqhgd->bkhd", d_scores, grouped(q), preferred_element_type=f32)
        return (d_k, d_v), d_q.reshape(*q.shape)

    empty = (jnp.zeros(k.shape, f32), jnp.zeros(v.shape, f32))
    queries = (*(split_queries(x, size) for x in (q, lse, d_out, delta)), firsts)
    (d_k, d_v), d_q = jax.lax.scan(one, empty, queries)
    return join_queries(d_q, length), d_k, d_v
