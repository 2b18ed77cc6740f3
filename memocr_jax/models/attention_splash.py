"""Splash attention, for TPUs: one call for packed rows, under a mask that is computed in the kernel."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from memocr_jax.core.sharding import per_device
from memocr_jax.core.types import RowLayout
from memocr_jax.models.jax_internals import internal

_KERNEL = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
_MASK = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask"


def require_internals() -> tuple[Any, Any, Any, Any, Any]:
    """(kernel maker, block sizes, segment ids, masks of several heads, computed masks) of splash attention.

    Raises UserError when this JAX has others. Splash has no public way to add a mask that is computed.
    """
    return (
        internal("splash", _KERNEL, "make_splash_mqa_single_device", ("mask", "block_sizes", "interpret")),
        internal("splash", _KERNEL, "BlockSizes", ("block_q", "block_kv", "block_q_dkv", "block_q_dq")),
        internal("splash", _KERNEL, "SegmentIds", ("q", "kv")),
        internal("splash", _MASK, "MultiHeadMask", ("masks",)),
        internal("splash", _MASK, "_ComputableMask", ("shape", "mask_function")),
    )


def packed_splash(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L kv_heads dim"],
    v: Float[Array, "B L kv_heads dim"],
    segments: Int32[Array, "B L"],
    layout: RowLayout,
    mesh: Mesh | None,
    interpret: bool = False,
) -> Float[Array, "B L heads dim"]:
    """`attention.packed` by splash attention: one call; blocks of keys that no query sees are not visited.

    `interpret` runs the kernel as plain operations, on any device.
    """
    make_kernel, block_sizes, segment_ids, several_heads, _ = require_internals()
    slots, dim = q.shape[1], q.shape[3]

    def pad(x: Array, value: int) -> Array:
        """The kernel takes whole blocks of 128 slots at least: the rest is padding."""
        widths = [(0, 0), (0, -slots % 128)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    q, k, v, segments = pad(q, 0), pad(k, 0), pad(v, 0), pad(segments, -1)
    length = q.shape[1]
    mask = splash_mask(layout, length)
    block = max(size for size in (128, 256, 512) if length % size == 0)
    blocks = block_sizes(
        **{f"block_{name}": block for name in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")}
    )

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        batch, _, heads, _ = q.shape
        kv_heads = k.shape[2]
        kernel = make_kernel(
            several_heads([mask] * (heads // kv_heads)), block_sizes=blocks, interpret=interpret
        )
        grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
        # Padding sees padding, so every query sees something, and no valid query sees padding.
        ids = (segments < 0).astype(jnp.int32)
        ids = segment_ids(q=ids, kv=ids)
        by_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
        out = jax.vmap(by_head)(grouped * dim**-0.5, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), ids)
        return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)

    return per_device(local, mesh, q.shape[0], k.shape[2])(q, k, v, segments)[:, :slots]


@functools.cache
def splash_mask(layout: RowLayout, length: int) -> Any:
    """The mask of packed rows of `length` slots as a function of indices; it is never written out."""
    *_, computed_mask = require_internals()
    prefix, own = layout.prefix, layout.own

    def sees(query: Array, key: Array) -> Array:
        same = (query - prefix) // own == (key - prefix) // own
        return (key <= query) & ((key < prefix) | (same & (query >= prefix)))

    class SharedPrefixMask(computed_mask):
        """A mask that splash computes in the kernel."""

        def __eq__(self, other: object) -> bool:
            return self is other  # made once for each layout

        def __hash__(self) -> int:
            return hash((layout, length))

    return SharedPrefixMask((length, length), sees)
