"""Initial weights of a tiny model trained from nothing: silent blocks, and heads that look back.

Both are designed priors, not learned: docs/nano says so. Without the second, looking a fact up in a text was
not learned in some runs; with it, it takes a minute.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.rope import inverse_frequencies

OUTPUTS = ("o_proj", "down_proj", "proj")
"""Modules whose output is added to the residual stream."""


def from_nothing(params: nnx.State, config: Qwen25VLConfig) -> nnx.State:
    """`params` with silent blocks and a head that looks one token back, laid out as they are."""
    shardings = jax.tree.map(lambda x: x.sharding, params)
    return jax.jit(lambda x: look_back(silence_blocks(x), config), out_shardings=shardings)(params)


def silence_blocks(params: nnx.State) -> nnx.State:
    """The parameters with zeros in every block's output projections: each block starts as the identity."""
    return _changed(params, lambda path, x: jnp.zeros_like(x) if path[-2:-1] and path[-2] in OUTPUTS else x)


def look_back(params: nnx.State, config: Qwen25VLConfig, strength: float = 6.0) -> nnx.State:
    """The parameters with query heads of the first decoder layer that attend to the token before, and (with
    grouped queries) the one before that, whatever the tokens are.

    The heads of key head 0 get biases and no weights for queries and keys. A rotary pair of frequency f turns
    query and key by f a position, so with k = `strength` and q = `strength` e^{-i d f} their product is
    largest at distance d. Only frequencies that turn with the temporal position take part, in which all
    tokens of an image are in one place.

    Raises ValueError when a layer has no such frequencies.
    """
    text = config.text
    temporal, dim = text.mrope_section[0], text.head_dim
    if not temporal:
        raise ValueError("mrope_section has no temporal frequencies: there is nothing to look back with")
    frequencies = inverse_frequencies(dim, text.rope_theta)[:temporal]
    key = np.zeros(dim, np.float32)
    key[:temporal] = strength
    queries = np.zeros((text.num_attention_heads // text.num_key_value_heads, dim), np.float32)
    for head, distance in zip(queries, (1, 2), strict=False):
        head[:temporal] = strength * np.cos(distance * frequencies)
        head[dim // 2 : dim // 2 + temporal] = -strength * np.sin(distance * frequencies)
    biases = {"q_proj": queries[:2].reshape(-1), "k_proj": key}

    def change(path, x):
        if path[:2] != ("language_model", "layers") or path[-2] not in biases:
            return x
        bias = biases[path[-2]]
        rows = slice(0, len(bias))
        if path[-1] == "bias":
            return x.at[0, rows].set(bias)
        return x.at[0, rows].set(0.0)

    return _changed(params, change)


def _changed(params: nnx.State, change: Callable[[tuple, jnp.ndarray], jnp.ndarray]) -> nnx.State:
    flat = nnx.to_flat_state(params)
    pairs = [(path, variable.replace(change(path, variable.get_value()))) for path, variable in flat]
    return nnx.from_flat_state(pairs)
