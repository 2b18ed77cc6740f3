"""One prefix, K siblings: packed rows and cached decoding give what separate sequences give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memocr_jax.models.cache import cache_from_packed
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from memocr_jax.models.qwen25_vl import abstract_model, init_params

CONFIG = Qwen25VLConfig(
    text=TextConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        mrope_section=(1, 1, 2),
        initializer_range=0.2,
    ),
    vision=VisionConfig(depth=1, hidden_size=16, intermediate_size=20, num_heads=2, out_hidden_size=48),
)
PREFIX_SLOTS, SUFFIX_SLOTS, CAPACITY = 9, 4, 8
PREFIX_LEN = np.array([9, 6])
SUFFIX_LEN = np.array([[4, 1, 2], [3, 4, 1]])


@pytest.fixture(scope="module")
def model():
    graphdef, _ = abstract_model(CONFIG, dtype=jnp.float32)
    params = init_params(CONFIG, 3, dtype=jnp.float32)

    @jax.jit
    def forward(tokens, positions, segments):
        module = nnx.merge(graphdef, params)
        hidden, kv = module.hidden(module.embed(tokens), positions, segments, return_kv=True)
        return module.head(hidden), kv

    return forward, jax.jit(lambda *args: nnx.merge(graphdef, params).decode(*args))


@pytest.fixture(scope="module")
def packed(model):
    """Two groups of three siblings in packed rows; the tokens of every sibling go on to the capacity."""
    rng = np.random.default_rng(0)
    prefix = rng.integers(0, 97, (2, PREFIX_SLOTS))
    suffix = rng.integers(0, 97, (2, 3, CAPACITY))
    length = PREFIX_SLOTS + 3 * SUFFIX_SLOTS
    tokens, segments = np.full((2, length), 5), np.full((2, length), -1)
    positions = np.zeros((3, 2, length), int)
    for q in range(2):
        tokens[q, : PREFIX_LEN[q]], segments[q, : PREFIX_LEN[q]] = prefix[q, : PREFIX_LEN[q]], 0
        positions[:, q, : PREFIX_LEN[q]] = np.arange(PREFIX_LEN[q])
        for k in range(3):
            span = slice(start := PREFIX_SLOTS + k * SUFFIX_SLOTS, start + SUFFIX_LEN[q, k])
            tokens[q, span], segments[q, span] = suffix[q, k, : SUFFIX_LEN[q, k]], k + 1
            positions[:, q, span] = PREFIX_LEN[q] + np.arange(SUFFIX_LEN[q, k])
    logits, kv = model[0](tokens, positions, segments)
    return prefix, suffix, segments, np.asarray(logits), kv


def separate(model, prefix, suffix, q, k):
    """Logits of one sibling's whole sequence, computed alone."""
    tokens = np.concatenate([prefix[q, : PREFIX_LEN[q]], suffix[q, k]])
    tokens = np.pad(tokens, (0, PREFIX_SLOTS + CAPACITY - len(tokens)))[None]
    positions = np.broadcast_to(np.arange(tokens.shape[1]), (3, 1, tokens.shape[1]))
    return np.asarray(model[0](tokens, positions, np.zeros(tokens.shape, int))[0])[0]


def test_packed_rows_equal_separate_sequences(model, packed):
    prefix, suffix, segments, logits, _ = packed
    for q, k in np.ndindex(2, 3):
        alone = separate(model, prefix, suffix, q, k)
        p, s = PREFIX_LEN[q], SUFFIX_LEN[q, k]
        np.testing.assert_allclose(logits[q, segments[q] == 0], alone[:p], atol=1e-4)
        np.testing.assert_allclose(logits[q, segments[q] == k + 1], alone[p : p + s], atol=1e-4)


def test_cached_decoding_equals_the_full_forward_pass(model, packed):
    prefix, suffix, _, _, kv = packed
    cache = cache_from_packed(
        *kv,
        prefix_slots=PREFIX_SLOTS,
        siblings=3,
        suffix_slots=SUFFIX_SLOTS,
        capacity=CAPACITY,
        prefix_len=jnp.asarray(PREFIX_LEN),
        suffix_len=jnp.asarray(SUFFIX_LEN),
    )
    assert cache.capacity == CAPACITY
    for step in range(CAPACITY - SUFFIX_LEN.max()):
        at = SUFFIX_LEN + step
        tokens = np.take_along_axis(suffix, at[..., None], axis=2)[..., 0]
        positions = np.broadcast_to(PREFIX_LEN[:, None] + at, (3, 2, 3))
        logits, cache = model[1](tokens.reshape(6), positions.reshape(3, 6), cache)
        np.testing.assert_array_equal(cache.suffix_len, (at + 1).reshape(6))
        logits = np.asarray(logits).reshape(2, 3, -1)
        for q, k in np.ndindex(2, 3):
            alone = separate(model, prefix, suffix, q, k)[PREFIX_LEN[q] + at[q, k]]
            np.testing.assert_allclose(logits[q, k], alone, atol=1e-4)


def test_a_layout_that_is_not_the_rows(packed):
    lengths = {"prefix_len": jnp.asarray(PREFIX_LEN), "suffix_len": jnp.asarray(SUFFIX_LEN)}
    with pytest.raises(ValueError, match="expected 9 \\+ 3 x 5 = 24 slots"):
        cache_from_packed(*packed[-1], prefix_slots=9, siblings=3, suffix_slots=5, capacity=8, **lengths)
    with pytest.raises(ValueError, match="a capacity of at least 4"):
        cache_from_packed(*packed[-1], prefix_slots=9, siblings=3, suffix_slots=4, capacity=3, **lengths)
