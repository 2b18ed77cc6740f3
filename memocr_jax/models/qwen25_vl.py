"""Qwen2.5-VL: images and text in, logits out; packed rows in training, a shared-prefix cache in decoding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memocr_jax.core.sharding import constrain_batch
from memocr_jax.core.types import RowLayout, VisionBatch
from memocr_jax.models.attention import Implementation
from memocr_jax.models.cache import DecodeCache
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.layers import Linear, Maker, Remat, matmul_t, unstack
from memocr_jax.models.text import TextModel
from memocr_jax.models.vision import VisionModel


class Qwen25VL(nnx.Module):
    """The whole model (arXiv 2502.13923). Parameter paths are those of the published checkpoints.

    Args:
        config: shapes and constants.
        dtype: type of activations and products. Norms, softmax, rotary angles and logits are float32.
        param_dtype: type in which parameters are stored.
        rngs: generator of random weights (`params`): normal with the config's standard deviation, zeros
            for biases, ones for norms, as transformers initialises.
        remat: what layers keep for the backward pass.
        attention: implementation of attention.
        mesh: devices over whose data axes activations are kept split, or None.
    """

    def __init__(
        self,
        config: Qwen25VLConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.bfloat16,
        param_dtype: Any = jnp.float32,
        remat: Remat = "full",
        attention: Implementation = "xla",
        mesh: Mesh | None = None,
    ):
        text = Maker(rngs, param_dtype, config.text.initializer_range)
        vision = Maker(rngs, param_dtype, config.vision.initializer_range)
        how = {"remat": remat, "implementation": attention, "mesh": mesh}
        self.visual = VisionModel(config.vision, vision, dtype=dtype, **how)
        self.language_model = TextModel(config.text, text, **how)
        head = {"vocab": config.text.vocab_size, "embed": config.text.hidden_size}
        self.lm_head = None if config.text.tie_word_embeddings else text("normal", **head)
        self.config, self.dtype, self.mesh = config, dtype, mesh

    def encode_images(self, vision: VisionBatch) -> Float[Array, "R slots D"]:
        """Merged image features in window order; `images.vision_batch` says which slot is which token."""
        return self.visual(vision)[0]

    def embed(
        self,
        tokens: Int32[Array, "*shape"],
        image_slots: Int32[Array, "*shape"] | None = None,
        features: Float[Array, "R slots D"] | None = None,
    ) -> Float[Array, "*shape D"]:
        """Input embeddings. Where `image_slots` is not -1, the feature it names in [R * slots, D]."""
        x = self.language_model.embed_tokens[...][tokens].astype(self.dtype)
        if image_slots is not None:
            flat = features.reshape(-1, features.shape[-1]).astype(self.dtype)
            x = jnp.where((image_slots >= 0)[..., None], flat[jnp.maximum(image_slots, 0)], x)
        return x

    def hidden(
        self,
        embeds: Float[Array, "B L D"],
        mrope_pos: Int32[Array, "3 B L"],
        segments: Int32[Array, "B L"],
        return_kv: bool = False,
        layout: RowLayout | None = None,
    ) -> Any:
        """Hidden states [B, L, D] after the final norm, of packed rows [prefix | siblings].

        Query i sees key j iff j <= i and segments[j] is 0 (the prefix) or segments[i]; -1 is padding.
        With `return_kv` also (k, v), each [layers, B, L, kv_heads, dim], keys rotated. `layout` says where
        the parts of all rows are, if that is known. Then the model's `attention` computes less.
        """
        keep = (lambda x, k, v: (k, v)) if return_kv else (lambda x, k, v: None)
        x, kv = self.language_model(embeds, mrope_pos, segments, keep, layout)
        return (x, kv) if return_kv else x

    def head(self, hidden: Float[Array, "*shape D"]) -> Float[Array, "*shape V"]:
        """Logits, float32 whatever the compute type."""
        return matmul_t(hidden, self._head_table().astype(hidden.dtype), jnp.float32)

    def _head_table(self) -> Float[Array, "V D"]:
        return (self.language_model.embed_tokens if self.lm_head is None else self.lm_head)[...]

    def decode(
        self,
        tokens: Int32[Array, "R"],
        mrope_pos: Int32[Array, "3 R"],
        cache: DecodeCache,
        copy: DecodingCopy | None = None,
    ) -> tuple[Float[Array, "R V"], DecodeCache]:
        """Logits after one new token per row, and the cache that holds it at slot `suffix_len`.

        On a CPU, pass `copy = model.decoding_copy()`, made once before the loop over tokens.
        """
        x = constrain_batch(self.embed(tokens), self.mesh)
        x, cache = self.language_model.decode(x, mrope_pos, cache, copy and copy.layers)
        if copy is None:
            return self.head(x), cache
        return jnp.matmul(x, copy.head[...].astype(x.dtype), preferred_element_type=jnp.float32), cache

    def decoding_copy(self) -> DecodingCopy:
        """The decoder's weights laid out for decoding on a CPU."""
        return DecodingCopy(self)


class DecodingCopy(nnx.Module):
    """A second copy of the decoder's weights, with separate layers and transposed matrices, for a CPU.

    A CPU decodes fastest from this layout: a scan over stacked layers would copy every layer's weights before
    it uses them, for every token.
    """

    def __init__(self, model: Qwen25VL):
        layers = unstack(model.language_model.layers)
        for layer in layers:
            for _, module in nnx.iter_modules(layer):
                if isinstance(module, Linear):
                    module.turn()
        self.layers = nnx.List(layers)
        self.head = nnx.Param(model._head_table().T)


def abstract_model(config: Qwen25VLConfig, **options: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, state of jax.ShapeDtypeStruct) of `Qwen25VL(config, **options)` without its memory.

    Names, shapes, types and logical axes are described here only: init, import and restore use this.
    """
    model = nnx.eval_shape(lambda: Qwen25VL(config, rngs=nnx.Rngs(0), **options))
    return nnx.split(model)


def init_params(config: Qwen25VLConfig, seed: int, shardings: Any = None, **options: Any) -> nnx.State:
    """Random parameters of `Qwen25VL(config, **options)`, made on their devices under one jit.

    Args:
        seed: the same seed gives the same parameters on every mesh.
        shardings: as `sharding.param_shardings` gives them, or None for the default device.
    """

    def init(key: jax.Array) -> nnx.State:
        return nnx.state(Qwen25VL(config, rngs=nnx.Rngs(params=key), **options))

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))
