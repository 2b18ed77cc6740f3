"""Attention against a dense computation written out here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.models import attention

HEADS, KV_HEADS, DIM = 6, 2, 8


def dense(q, k, v, mask):
    """softmax(q k^T / sqrt(dim)) v in float64, masked; a query that sees nothing gives zeros."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(DIM)
    weights = np.where(mask[:, None], np.exp(scores - scores.max(-1, keepdims=True)), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def inputs(rng, batch, length):
    shapes = [(batch, length, h, DIM) for h in (HEADS, KV_HEADS, KV_HEADS)]
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def packed_mask(segments):
    """The rule of the interface, pair by pair."""
    batch, length = segments.shape
    mask = np.zeros((batch, length, length), bool)
    for b, i, j in np.ndindex(mask.shape):
        mine, other = segments[b, i], segments[b, j]
        mask[b, i, j] = j <= i and other >= 0 and (other == 0 or other == mine)
    return mask


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.integers(0, 5),
    siblings=st.lists(st.integers(0, 4), max_size=3),
    gaps=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    chunk=st.sampled_from([3, 4, 7, 64]),
)
def test_packed_rows_with_padding_anywhere(prefix, siblings, gaps, chunk):
    parts = [[-1] * gaps[0], [0] * prefix]
    for k, length in enumerate(siblings):
        parts += [[-1] * gaps[k + 1], [k + 1] * length]
    row = [s for part in parts for s in part][:20]
    segments = np.array([row + [-1] * (20 - len(row)), [0] * 20])
    q, k, v = inputs(np.random.default_rng(1), 2, 20)
    out = np.asarray(attention.packed(q, k, v, jnp.asarray(segments), query_chunk=chunk))
    expected = dense(q, k, v, packed_mask(segments))
    np.testing.assert_allclose(out[segments >= 0], expected[segments >= 0], atol=1e-5)
    assert np.isfinite(out).all(), "padding must give numbers: NaN would spread through the residual stream"


def test_gradients_do_not_depend_on_chunks_and_padding_gets_none():
    q, k, v = inputs(np.random.default_rng(2), 1, 12)
    segments = jnp.asarray([[0] * 4 + [1] * 3 + [-1] * 2 + [2] * 3])

    def loss(args, chunk):
        out = attention.packed(*args, segments, query_chunk=chunk)
        return (out[segments >= 0] ** 2).sum()

    whole, chunked = (jax.grad(loss)((q, k, v), chunk) for chunk in (64, 5))
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert not np.asarray(a)[0, 7:9].any()


def test_bidirectional_sees_valid_keys_only():
    rng = np.random.default_rng(3)
    q, _, _ = inputs(rng, 2, 10)
    k, v = (jnp.asarray(rng.standard_normal(q.shape), jnp.float32) for _ in range(2))
    valid = np.ones((2, 10), bool)
    valid[0, 6:] = False
    mask = np.broadcast_to(valid[:, None, :], (2, 10, 10))
    for chunk in (4, 64):
        out = attention.bidirectional(q, k, v, jnp.asarray(valid), query_chunk=chunk)
        np.testing.assert_allclose(out, dense(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 9])
def test_decoding_over_two_caches_is_attention_over_both(prefix):
    rng = np.random.default_rng(4)
    groups, slots = 2, 5
    # Rows in no order: groups of three and two siblings, one place and one row (3) not in use.
    members = np.array([[4, 0, 2], [1, 5, 6]])
    place = np.array([1, 3, 2, 0, 0, 4])
    rows = len(place)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    q = draw(rows, HEADS, DIM)
    pk, pv = draw(groups, prefix, KV_HEADS, DIM), draw(groups, prefix, KV_HEADS, DIM)
    sk, sv = (draw(rows, slots, KV_HEADS, DIM) for _ in range(2))
    prefix_valid = np.arange(prefix) < np.array([[prefix], [prefix // 2]])
    suffix_valid = np.arange(slots) < np.array([1, 3, 5, 2, 5, 4])[:, None]
    keys, values = (lambda x: x.transpose(0, 2, 3, 1)), (lambda x: x.transpose(0, 2, 1, 3))
    out = attention.decode(
        q, keys(pk), values(pv), prefix_valid, keys(sk), values(sv), suffix_valid, members, place
    )
    assert np.isfinite(out).all()
    for row in (0, 1, 2, 4, 5):
        g = place[row] // 3
        k, v = (jnp.concatenate([p[g], x[row]])[None] for p, x in ((pk, sk), (pv, sv)))
        mask = np.concatenate([prefix_valid[g], suffix_valid[row]])[None, None]
        np.testing.assert_allclose(out[row], dense(q[None, row : row + 1], k, v, mask)[0, 0], atol=1e-5)


def test_unknown_implementation():
    q, k, v = inputs(np.random.default_rng(5), 1, 3)
    with pytest.raises(ValueError, match="'flash' is not one of"):
        attention.packed(q, k, v, jnp.zeros((1, 3), jnp.int32), implementation="flash")
