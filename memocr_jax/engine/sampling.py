"""Drawing tokens from logits: temperature, top-k, top-p, and the sampler's log-probability."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from memocr_jax.config import SamplingConfig


class RowSampling(NamedTuple):
    """Sampling settings of each row, as arrays: rows that sample differently share a batch and a program."""

    temperature: Float[Array, "*B"]
    top_p: Float[Array, "*B"]
    top_k: Int32[Array, "*B"]
    min_new_tokens: Int32[Array, "*B"]

    @classmethod
    def of(cls, *configs: SamplingConfig) -> RowSampling:
        """The settings of several rows, as numpy arrays."""
        return cls(
            np.array([c.temperature for c in configs], np.float32),
            np.array([c.top_p for c in configs], np.float32),
            np.array([c.top_k for c in configs], np.int32),
            np.array([c.min_new_tokens for c in configs], np.int32),
        )


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    position: Int32[Array, "#B"] | Int32[Array, ""],
    sampling: RowSampling | SamplingConfig,
    eos_ids: tuple[int, ...],
) -> tuple[Int32[Array, "B"], Float[Array, "B"]]:
    """One token per row, with its log-probability.

    The draw is Gumbel-max with the row's own key folded with its `position` (tokens that it has sampled so
    far), so it depends on nothing else in the batch. The log-probability is that of the tempered distribution
    before top-k, top-p and `min_new_tokens` cut it, which is what the trainer recomputes. Greedy (temperature
    0) takes the arg max and reports its log-probability at temperature 1.
    """
    rows, vocab = logits.shape
    if isinstance(sampling, SamplingConfig):
        sampling = RowSampling.of(sampling)
    temperature, top_p, top_k, least = (jnp.broadcast_to(x, rows) for x in sampling)
    position = jnp.broadcast_to(position, rows)
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    logp = jax.nn.log_softmax(scaled)
    is_eos = jnp.zeros(vocab, bool).at[jnp.array(eos_ids, jnp.int32)].set(True)
    allowed = jnp.where(is_eos & (position < least)[:, None], -jnp.inf, scaled)
    # A greedy row takes the likeliest token, which no cut removes.
    cut = ~greedy & ((top_k > 0) | (top_p < 1))
    allowed = jax.lax.cond(
        cut.any(),
        lambda x: jnp.where(top_k_top_p_mask(x, top_k, top_p) | ~cut[:, None], x, -jnp.inf),
        lambda x: x,
        allowed,
    )
    noise = jax.lax.cond(
        greedy.all(),
        lambda: jnp.zeros_like(scaled),
        lambda: jnp.where(greedy[:, None], 0.0, jax.vmap(_gumbel, (0, 0, None))(keys, position, vocab)),
    )
    tokens = _first_largest(allowed + noise)
    return tokens, jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]


def _first_largest(x: Float[Array, "B V"]) -> Int32[Array, "B"]:
    """jnp.argmax over the last axis, as two plain reductions: XLA's own takes ten times as long on a CPU."""
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    largest = x == x.max(axis=-1, keepdims=True)
    return jnp.where(largest, places, x.shape[-1] - 1).min(axis=-1)


def _gumbel(key: UInt32[Array, "2"], position: Int32[Array, ""], size: int) -> Float[Array, "V"]:
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, position), (size,), jnp.float32)


def top_k_top_p_mask(
    logits: Float[Array, "B V"], top_k: Int32[Array, "B"] | int, top_p: Float[Array, "B"] | float
) -> Bool[Array, "B V"]:
    """True for the tokens that may be sampled: the k likeliest, and of these the fewest whose share is >= p.

    Tokens tied at the cut all stay. top_k 0 and top_p 1 cut nothing.
    """
    rows, vocab = logits.shape
    top_k, top_p = jnp.broadcast_to(top_k, rows), jnp.broadcast_to(top_p, rows)
    by_k, by_p = (top_k > 0) & (top_k < vocab), top_p < 1
    probs = jax.nn.softmax(logits)

    def likeliest(probs):
        # The k-th largest probability is the largest t with at least k probabilities >= t.
        threshold = _largest_threshold(probs, lambda kept: kept.sum(-1) >= top_k)
        return jnp.where(by_k[:, None] & (probs < threshold), 0.0, probs)

    def fewest(probs):
        probs = probs / probs.sum(-1, keepdims=True)
        threshold = _largest_threshold(probs, lambda kept: jnp.where(kept, probs, 0).sum(-1) >= top_p)
        return jnp.where(by_p[:, None] & (probs < threshold), 0.0, probs)

    kept = jax.lax.cond(by_k.any(), likeliest, lambda probs: probs, probs)
    kept = jax.lax.cond(by_p.any(), fewest, lambda probs: probs, kept)
    # A row that nothing cuts keeps tokens whose probability is 0 in float32.
    return (logits > -jnp.inf) & ((kept > 0) | ~(by_k | by_p)[:, None])


def _largest_threshold(probs: Float[Array, "B V"], enough) -> Float[Array, "B 1"]:
    """The largest float32 t per row for which `enough(probs >= t)` holds, by bisection on t's bits.

    Non-negative floats sort like their bit patterns, so 31 halvings find t exactly: reductions over V instead
    of a sort of V, which for a vocabulary of 152K costs several times as much on every backend.
    """
    low = jnp.zeros(probs.shape[0], jnp.int32)  # the bits of 0.0: everything is kept
    high = jnp.full(probs.shape[0], 0x3F800001, jnp.int32)  # just above 1.0: nothing is kept

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        holds = enough(probs >= threshold[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)[:, None]
