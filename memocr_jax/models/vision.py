"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1.1) over the padded-window layout.

A row is an image, its patches are grouped by attention window and every window has all its slots, so window
attention is one batched product and one executable serves every aspect ratio (`models/images.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from memocr_jax.core.sharding import constrain_batch
from memocr_jax.core.types import VisionBatch
from memocr_jax.models import attention
from memocr_jax.models.config import VisionConfig
from memocr_jax.models.images import normal_values
from memocr_jax.models.layers import Linear, Maker, Remat, RMSNorm, SwiGLU, matmul_t, scan_layers
from memocr_jax.models.rope import rotate, sin_cos, vision_angles


class PatchEmbed(nnx.Module):
    """A 3-D convolution whose stride is its kernel: one product per patch."""

    def __init__(self, config: VisionConfig, make: Maker):
        self.weight = make(
            "normal",
            vision_embed=config.hidden_size,
            channels=config.in_channels,
            frames=config.temporal_patch_size,
            patch=config.patch_size,
            patch_2=config.patch_size,
        )

    def __call__(self, patches: Float[Array, "*shape features"]) -> Float[Array, "*shape C"]:
        kernel = self.weight[...].astype(patches.dtype)
        return matmul_t(patches, kernel.reshape(kernel.shape[0], -1))


class VisionAttention(nnx.Module):
    """The fused projection to queries, keys and values, and the one back."""

    def __init__(self, config: VisionConfig, make: Maker):
        width = {"vision_embed": config.hidden_size}
        self.qkv = Linear(make, width, {"vision_qkv": 3 * config.hidden_size}, bias=True)
        self.proj = Linear(make, {"vision_heads": config.hidden_size}, width, bias=True)
        self.num_heads = config.num_heads


class VisionBlock(nnx.Module):
    """Attention and SwiGLU, each after a norm and added to its input."""

    def __init__(self, config: VisionConfig, make: Maker):
        self.norm1 = RMSNorm(make, config.rms_norm_eps, vision_embed=config.hidden_size)
        self.attn = VisionAttention(config, make)
        self.norm2 = RMSNorm(make, config.rms_norm_eps, vision_embed=config.hidden_size)
        width, inner = {"vision_embed": config.hidden_size}, {"vision_mlp": config.intermediate_size}
        self.mlp = SwiGLU(make, width, inner, bias=True)

    def __call__(
        self, x: Float[Array, "R W N C"], sincos: Any, attend: Callable[[Array, Array, Array], Array]
    ) -> Float[Array, "R W N C"]:
        """One block; `attend(q, k, v)`, each [R, W, N, heads, dim], gives the heads' outputs."""
        qkv = self.attn.qkv(self.norm1(x)).reshape(*x.shape[:-1], 3, self.attn.num_heads, -1)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        heads = attend(rotate(q, sincos), rotate(k, sincos), v)
        x = x + self.attn.proj(heads.reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Norm, then a two-layer perceptron over the concatenated patches of each merge unit."""

    def __init__(self, config: VisionConfig, make: Maker):
        self.ln_q = RMSNorm(make, config.rms_norm_eps, vision_embed=config.hidden_size)
        merged = config.hidden_size * config.merge_unit
        inner = {"merger_inner": merged}
        self.fc1 = Linear(make, {"merger_in": merged}, inner, bias=True)
        self.fc2 = Linear(make, inner, {"embed": config.out_hidden_size}, bias=True)
        self.merge_unit = config.merge_unit

    def __call__(self, x: Float[Array, "R W N C"]) -> Float[Array, "R slots D"]:
        x = self.ln_q(x).reshape(x.shape[0], -1, self.merge_unit * x.shape[-1])
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class VisionModel(nnx.Module):
    """Patches to image features, in the order of the windows."""

    def __init__(
        self,
        config: VisionConfig,
        make: Maker,
        *,
        dtype: Any,
        remat: Remat,
        implementation: attention.Implementation,
        mesh: Mesh | None,
    ):
        self.patch_embed = PatchEmbed(config, make)
        self.blocks = VisionBlock(config, make.stacked(config.depth))
        self.merger = PatchMerger(config, make)
        self.config, self.dtype, self.remat = config, dtype, remat
        self.implementation, self.mesh = implementation, mesh

    def __call__(
        self, vision: VisionBatch, keep: Callable[[Array], Any] = lambda x: None
    ) -> tuple[Float[Array, "R slots D"], Any]:
        """Merged features, slots = W * N / merge_unit per row, and what `keep` makes of every block's
        output [R, W, N, C], stacked over blocks. Features of invalid slots are finite and mean nothing."""
        sincos = sin_cos(vision_angles(vision.coords, self.config))
        full = np.isin(np.arange(self.config.depth), self.config.fullatt_block_indexes)

        def step(block, x, sees_all):
            def attend(q, k, v):
                return jax.lax.cond(sees_all, self._image_attention, self._window_attention, q, k, v, vision)

            x = constrain_batch(block(x, sincos, attend), self.mesh)
            return x, keep(x)

        x = constrain_batch(self.patch_embed(self._normal(vision.patches).astype(self.dtype)), self.mesh)
        x, kept = scan_layers(self.blocks, step, x, full, remat=self.remat)
        return self.merger(x), kept

    def _normal(self, patches: Array) -> Float[Array, "R W N features"]:
        """Normalised patches; bytes become what `images.prepare_image` makes of them, frame for frame."""
        if patches.dtype != jnp.uint8:
            return patches
        channels = patches.reshape(*patches.shape[:-1], 3, -1)
        table = jnp.asarray(normal_values())
        values = jnp.stack([table[channels[..., c, :], c] for c in range(3)], axis=-2)
        frames = jnp.repeat(values[..., None, :], self.config.temporal_patch_size, axis=-2)
        return frames.reshape(*patches.shape[:-1], -1)

    def _window_attention(self, q: Array, k: Array, v: Array, vision: VisionBatch) -> Array:
        return self._attention(q, k, v, vision.valid, None, rows=q.shape[0] * q.shape[1])

    def _image_attention(self, q: Array, k: Array, v: Array, vision: VisionBatch) -> Array:
        images = vision.image
        if images is not None:
            images = jnp.broadcast_to(images[..., None], vision.valid.shape)
        return self._attention(q, k, v, vision.valid, images, rows=q.shape[0])

    def _attention(
        self, q: Array, k: Array, v: Array, valid: Array, images: Array | None, rows: int
    ) -> Array:
        """Attention among the patches of each of `rows` equal parts of the batch, within `images`."""
        heads_dim = q.shape[-2:]
        parts = (t.reshape(rows, -1, *heads_dim) for t in (q, k, v))
        out = attention.bidirectional(
            *parts,
            valid.reshape(rows, -1),
            images if images is None else images.reshape(rows, -1),
            implementation=self.implementation,
        )
        return out.reshape(q.shape)
