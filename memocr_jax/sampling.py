"""Drawing tokens from logits: temperature, top-k, top-p, and the sampler's log-probability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt32

from memocr_jax.config import SamplingConfig


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: UInt32[Array, "B 2"],
    position: Int32[Array, "#B"] | Int32[Array, ""],
    sampling: SamplingConfig,
    eos_ids: tuple[int, ...],
) -> tuple[Int32[Array, B], Float[Array, B]]:
    """One token per row, with its log-probability.

    The draw is Gumbel-max with the row's own key folded with its `position` (tokens that it has sampled so
    far), so it depends on nothing else in the batch. The log-probability is that of the tempered distribution before
    top-k, top-p and `min_new_tokens` cut it, which is what the trainer recomputes. Greedy (temperature 0)
    takes the arg max and reports its log-probability at temperature 1.
    """
    greedy = sampling.temperature == 0
    position = jnp.broadcast_to(position, keys.shape[0])
    scaled = logits if greedy else logits / sampling.temperature
    logp = jax.nn.log_softmax(scaled)
    allowed = jnp.ones(logits.shape, bool)
    if sampling.min_new_tokens:
        is_eos = jnp.zeros(logits.shape[-1], bool).at[jnp.array(eos_ids)].set(True)
        allowed &= ~(is_eos & (position < sampling.min_new_tokens)[:, None])
    if not greedy:
        allowed &= top_k_top_p_mask(jnp.where(allowed, scaled, -jnp.inf), sampling.top_k, sampling.top_p)
        scaled = scaled + jax.vmap(lambda key, at: _gumbel(key, at, logits.shape[-1]))(keys, position)
    tokens = jnp.argmax(jnp.where(allowed, scaled, -jnp.inf), axis=-1).astype(jnp.int32)
    return tokens, jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]


def _gumbel(key: UInt32[Array, 2], position: Int32[Array, ""], size: int) -> Float[Array, V]:
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, position), (size,), jnp.float32)


def top_k_top_p_mask(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Bool[Array, "B V"]:
    """True for the tokens that may be sampled: the k likeliest, and of these the fewest whose share is >= p.

    Tokens tied at the cut all stay. top_k 0 and top_p 1 cut nothing.
    """
    mask = logits > -jnp.inf
    if top_k and top_k < logits.shape[-1]:
        # The k-th largest logit is the largest t with at least k logits >= t.
        probs = jax.nn.softmax(logits)
        mask = probs >= _largest_threshold(probs, lambda kept: kept.sum(-1) >= top_k)
    if top_p < 1:
        probs = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        enough = lambda kept: jnp.where(kept, probs, 0).sum(-1) >= top_p  # noqa: E731
        mask &= probs >= _largest_threshold(probs, enough)
    return mask


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
