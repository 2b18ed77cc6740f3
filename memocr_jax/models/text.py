"""The decoder of Qwen2.5-VL: grouped-query attention with QKV bias, M-RoPE, SwiGLU (arXiv 2502.13923)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memocr_jax.core.sharding import constrain_batch
from memocr_jax.core.types import RowLayout
from memocr_jax.models import attention
from memocr_jax.models.cache import DecodeCache, per_layer
from memocr_jax.models.config import TextConfig
from memocr_jax.models.layers import Linear, Maker, Remat, RMSNorm, SwiGLU, scan_layers
from memocr_jax.models.rope import mrope_angles, rotate, sin_cos


class Attention(nnx.Module):
    """Projections and rotation; the caller chooses what is attended to (a packed row or a cache)."""

    def __init__(self, config: TextConfig, make: Maker):
        width = {"embed": config.hidden_size}
        queries = {"q_heads": config.num_attention_heads * config.head_dim}
        keys = {"kv_heads": config.num_key_value_heads * config.head_dim}
        self.q_proj = Linear(make, width, queries, bias=True)
        self.k_proj = Linear(make, width, keys, bias=True)
        self.v_proj = Linear(make, width, keys, bias=True)
        self.o_proj = Linear(make, queries, width, bias=False)
        self.head_dim = config.head_dim

    def qkv(self, x: Float[Array, "*shape D"], sincos: Any) -> tuple[Array, Array, Array]:
        """Rotated queries [*shape, heads, dim], rotated keys and values [*shape, kv_heads, dim]."""
        q, k, v = (
            proj(x).reshape(*x.shape[:-1], -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, sincos), rotate(k, sincos), v

    def output(self, heads: Float[Array, "*shape heads dim"]) -> Float[Array, "*shape D"]:
        return self.o_proj(heads.reshape(*heads.shape[:-2], -1))


class DecoderLayer(nnx.Module):
    """Attention and SwiGLU, each after a norm and added to its input."""

    def __init__(self, config: TextConfig, make: Maker):
        self.input_layernorm = RMSNorm(make, config.rms_norm_eps, embed=config.hidden_size)
        self.self_attn = Attention(config, make)
        self.post_attention_layernorm = RMSNorm(make, config.rms_norm_eps, embed=config.hidden_size)
        self.mlp = SwiGLU(make, {"embed": config.hidden_size}, {"mlp": config.intermediate_size}, bias=False)

    def __call__(
        self,
        x: Float[Array, "*shape D"],
        sincos: Any,
        attend: Callable[[Array, Array, Array], tuple[Array, Any]],
    ) -> tuple[Float[Array, "*shape D"], Any]:
        """One layer. `attend(q, k, v)` gives the heads' outputs and whatever else the caller wants back."""
        q, k, v = self.self_attn.qkv(self.input_layernorm(x), sincos)
        heads, extra = attend(q, k, v)
        x = x + self.self_attn.output(heads)
        return x + self.mlp(self.post_attention_layernorm(x)), extra


class TextModel(nnx.Module):
    """Token embedding, stacked decoder layers, final norm."""

    def __init__(
        self,
        config: TextConfig,
        make: Maker,
        *,
        remat: Remat,
        implementation: attention.Implementation,
        mesh: Mesh | None,
    ):
        self.embed_tokens = make("normal", vocab=config.vocab_size, embed=config.hidden_size)
        self.layers = DecoderLayer(config, make.stacked(config.num_hidden_layers))
        self.norm = RMSNorm(make, config.rms_norm_eps, embed=config.hidden_size)
        self.config, self.remat, self.implementation, self.mesh = config, remat, implementation, mesh

    def __call__(
        self,
        embeds: Float[Array, "B L D"],
        mrope_pos: Int32[Array, "3 B L"],
        segments: Int32[Array, "B L"],
        keep: Callable[[Array, Array, Array], Any] = lambda x, k, v: None,
        layout: RowLayout | None = None,
    ) -> tuple[Float[Array, "B L D"], Any]:
        """Final hidden states of packed rows (see `attention.packed`), and what `keep` makes of every
        layer's output [B, L, D], keys and values [B, L, kv_heads, dim], stacked over layers."""
        sincos = sin_cos(mrope_angles(mrope_pos, self.config))

        def step(layer, x, _):
            def attend(q, k, v):
                heads = attention.packed(
                    q,
                    k,
                    v,
                    segments,
                    layout=layout,
                    implementation=self.implementation,
                    mesh=self.mesh,
                )
                return heads, (k, v)

            x, (k, v) = layer(x, sincos, attend)
            x = constrain_batch(x, self.mesh)
            return x, keep(x, k, v)

        x, kept = scan_layers(self.layers, step, constrain_batch(embeds, self.mesh), remat=self.remat)
        return self.norm(x), kept

    def decode(
        self,
        embeds: Float[Array, "R D"],
        mrope_pos: Int32[Array, "3 R"],
        cache: DecodeCache,
        layers: Sequence[DecoderLayer] | None = None,
    ) -> tuple[Float[Array, "R D"], DecodeCache]:
        """Final hidden states of one new token per row, and the cache with its keys and values.

        `layers` are those of `Qwen25VL.decoding_copy`, made before the loop over tokens; the cache's fields
        may then be tuples with one array per layer.
        """
        # Kept in memory: XLA would otherwise compute them again for every head of every layer.
        sincos = jax.lax.optimization_barrier(sin_cos(mrope_angles(mrope_pos, self.config)))
        rows = jnp.arange(cache.suffix_len.shape[0])
        prefix_slots = jax.tree.leaves(cache.prefix_v)[0].shape[-2]
        prefix_valid = jnp.arange(prefix_slots) < cache.prefix_len[:, None]
        suffix_valid = jnp.arange(cache.capacity) <= cache.suffix_len[:, None]

        def run(layer, x, write, prefix_k, prefix_v):
            def attend(q, k, v):
                own_k, own_v, extra = write(k, v)
                heads = attention.decode(
                    q,
                    prefix_k,
                    prefix_v,
                    prefix_valid,
                    own_k,
                    own_v,
                    suffix_valid,
                    cache.members,
                    cache.place,
                )
                return heads, extra

            return layer(x, sincos, attend)

        def put(keys, values, k, v, *layer):
            """Put the new token's key and value in their slots; a row that is full is left as it is."""
            k, v = k.astype(keys.dtype), v.astype(values.dtype)
            heads = jnp.arange(k.shape[1])
            at = (*layer, rows[:, None], heads)
            slot = cache.suffix_len[:, None]
            # Keys have their slots last: an index array on each side of a slice puts the slice last.
            return (
                keys.at[(*at, slice(None), slot)].set(k, mode="drop"),
                values.at[(*at, slot)].set(v, mode="drop"),
            )

        def scanned(layer, carry, slices):
            # The suffix cache is carried and written in place: as scan inputs and outputs it would be copied.
            x, suffix_k, suffix_v = carry
            index, prefix_k, prefix_v = slices

            def write(k, v):
                keys, values = put(suffix_k, suffix_v, k, v, index)
                own = (jax.lax.dynamic_index_in_dim(t, index, 0, keepdims=False) for t in (keys, values))
                return *own, (keys, values)

            x, (suffix_k, suffix_v) = run(layer, x, write, prefix_k, prefix_v)
            return (x, suffix_k, suffix_v), None

        if layers is None:
            index = jnp.arange(self.config.num_hidden_layers)
            carry = (embeds, cache.suffix_k, cache.suffix_v)
            (x, suffix_k, suffix_v), _ = scan_layers(
                self.layers, scanned, carry, (index, cache.prefix_k, cache.prefix_v), remat="none"
            )
        else:
            x, kept = embeds, []
            each = zip(*(per_layer(t) for t in cache[:2] + cache[3:5]), strict=True)
            for layer, (prefix_k, prefix_v, own_k, own_v) in zip(layers, each, strict=True):

                def write(k, v, keys=own_k, values=own_v):
                    keys, values = put(keys, values, k, v)
                    return keys, values, (keys, values)

                x, extra = run(layer, x, write, prefix_k, prefix_v)
                kept.append(extra)
            suffix_k, suffix_v = zip(*kept, strict=True)
            if not isinstance(cache.suffix_k, tuple):
                suffix_k, suffix_v = jnp.stack(suffix_k), jnp.stack(suffix_v)
        cache = cache._replace(suffix_k=suffix_k, suffix_v=suffix_v, suffix_len=cache.suffix_len + 1)
        return self.norm(x), cache
