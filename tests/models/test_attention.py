"""Attention against a dense computation written out here."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.core.errors import UserError
from memocr_jax.core.types import RowLayout
from memocr_jax.models import attention, attention_cudnn, attention_parts, attention_splash

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


@settings(max_examples=25)
@given(
    prefix=st.integers(0, 5),
    siblings=st.lists(st.integers(0, 4), max_size=3),
    gaps=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    chunk=st.sampled_from([2, 3, 7, 64]),  # of 20 slots: 2 makes more chunks than bands
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

    whole, chunked = (jax.grad(loss)((q, k, v), chunk) for chunk in (64, 1))
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

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

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


LAYOUT = RowLayout(prefix=7, siblings=3, own=5)


def layout_rows():
    """Two rows: siblings of different lengths and one that is not there; a prefix shorter than its slots."""
    segments = np.full((2, 22), -1)
    for row, (prefix, own) in enumerate([(7, (5, 2, 0)), (4, (1, 5, 3))]):
        segments[row, :prefix] = 0
        for k, length in enumerate(own):
            start = 7 + 5 * k
            segments[row, start : start + length] = k + 1
    return segments


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks of queries, the last of them padded."""
    for module in (attention, attention_parts):
        monkeypatch.setattr(module, "default_query_chunk", lambda length: 4)


def outputs_and_gradients(segments, attend):
    q, k, v = inputs(np.random.default_rng(6), *segments.shape)
    target = jnp.asarray(np.random.default_rng(7).standard_normal(q.shape), jnp.float32)

    @jax.jit
    def loss(q, k, v):
        out = attend(q, k, v, jnp.asarray(segments))
        out = jnp.where((segments >= 0)[..., None, None], out, 0)
        return (out * target).sum(), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


@pytest.mark.parametrize("siblings", [3, 1, 0])
def test_two_parts_merged_equal_the_packed_mask(siblings, small_chunks):
    layout = dataclasses.replace(LAYOUT, siblings=siblings)
    segments = layout_rows()[:, : 7 + 5 * siblings]
    expected = outputs_and_gradients(segments, attention.packed)
    # `packed` makes no parts of a group of one or none; the formula must hold all the same.
    parts = functools.partial(attention._by_parts, layout=layout, implementation="xla", query_chunk=None)
    by_layout = functools.partial(attention.packed, layout=layout) if siblings > 1 else parts
    for ours, theirs in zip(outputs_and_gradients(segments, by_layout), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_merge_takes_any_kernel(small_chunks):
    """A kernel that knows nothing of gradients, as cuDNN's: here jax.nn's plain form."""

    def kernel(q, k, v, valid, causal):
        out, lse = jax.nn.dot_product_attention(
            q, k, v, is_causal=causal, key_value_seq_lengths=valid, return_residual=True, implementation="xla"
        )
        return jax.lax.stop_gradient((out, lse))

    rng = np.random.default_rng(8)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    arrays = [draw(2, 3, 5, HEADS, DIM)] + [draw(2, 7, KV_HEADS, DIM) for _ in range(2)]
    arrays += [draw(2, 3, 5, KV_HEADS, DIM) for _ in range(2)]
    prefix_len, own_len = jnp.array([7, 4]), jnp.array([[5, 2, 3], [1, 5, 3]])
    valid = jnp.arange(5) < own_len[..., None]

    def loss(arrays, kernel):
        q, pk, pv, ok, ov = arrays
        out = attention_parts.shared_prefix(q, pk, pv, prefix_len, ok, ov, own_len, kernel)
        return (jnp.where(valid[..., None, None], out, 0) ** 2).sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    ours, theirs = (gradient(arrays, f) for f in (kernel, attention_parts.flash_xla))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_splash_in_its_interpreter():
    """The mask and the layout around the TPU's kernel; the kernel itself runs as plain operations here."""
    layout = RowLayout(prefix=47, siblings=2, own=40)
    segments = np.full((1, 127), -1)
    segments[0, :41], segments[0, 47:87], segments[0, 87:100] = 0, 1, 2
    q, k, v = inputs(np.random.default_rng(9), 1, 127)
    out = np.asarray(
        attention_splash.packed_splash(q, k, v, jnp.asarray(segments), layout, None, interpret=True)
    )
    expected = np.asarray(attention.packed(q, k, v, jnp.asarray(segments)))
    np.testing.assert_allclose(out[segments >= 0], expected[segments >= 0], atol=1e-5)
    assert np.isfinite(out).all()


def test_the_splash_mask_is_the_rule_of_packed_rows():
    mask = attention_splash.splash_mask(LAYOUT, 22)
    segments = np.array([[0] * 7 + [1] * 5 + [2] * 5 + [3] * 5])
    np.testing.assert_array_equal(mask[:, :], packed_mask(segments)[0])
    assert mask == attention_splash.splash_mask(LAYOUT, 22), "equal masks of heads are processed once"
    assert mask != attention_splash.splash_mask(RowLayout(prefix=2, siblings=2, own=10), 22)


def test_what_cannot_run_is_said():
    q, k, v = inputs(np.random.default_rng(5), 1, 3)
    segments = jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="'flash' is not one of: xla, cudnn, splash"):
        attention.packed(q, k, v, segments, implementation="flash")
    with pytest.raises(ValueError, match="is not that of rows of 3 slots"):
        attention.packed(q, k, v, segments, layout=LAYOUT)
    for name, needs in {"cudnn": "GPU", "splash": "TPU"}.items():
        with pytest.raises(UserError, match=rf"model\.attention is {name}, which needs a {needs}.*to xla"):
            attention.require_backend(name, "cpu", "bfloat16")
    with pytest.raises(UserError, match=r"cudnn and model\.dtype float32"):
        attention.require_backend("cudnn", "gpu", "float32")
    attention.require_backend("xla", "cpu", "float32")
    attention.require_backend("cudnn", "gpu", "bfloat16")
    attention.require_backend("splash", "tpu", "float32")


@pytest.mark.parametrize(
    ("implementation", "backend", "target", "other", "what"),
    [
        ("cudnn", "gpu", f"{attention_cudnn._MODULE}.MaskType", None, r"no jax.*\.MaskType"),
        (
            *("cudnn", "gpu", f"{attention_cudnn._MODULE}.dot_product_attention"),
            *(lambda query, key, value, scale: None, r"without the argument q_seqlen"),
        ),
        ("splash", "tpu", f"{attention_splash._MASK}._ComputableMask", None, r"no .*\._ComputableMask"),
        (
            *("splash", "tpu", f"{attention_splash._KERNEL}.make_splash_mqa_single_device"),
            *(lambda mask, interpret: None, r"without the argument block_sizes"),
        ),
    ],
)
def test_a_jax_with_other_internals_is_said(monkeypatch, implementation, backend, target, other, what):
    if other is None:
        monkeypatch.delattr(target)
    else:
        monkeypatch.setattr(target, other)
    with pytest.raises(
        UserError, match=rf"model\.attention is {implementation}, but JAX .* has .*{what}.*to xla"
    ):
        attention.require_backend(implementation, backend, "bfloat16")
