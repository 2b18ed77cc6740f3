"""The key/value cache of a group: one shared prefix, K siblings with their own suffixes."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


class DecodeCache(NamedTuple):
    """Keys (rotated) and values of all layers. Slots at or above a length are not valid."""

    prefix_k: Float[Array, "layers Q P kv_heads dim"]
    prefix_v: Float[Array, "layers Q P kv_heads dim"]
    prefix_len: Int32[Array, "Q"]
    suffix_k: Float[Array, "layers Q K T kv_heads dim"]
    suffix_v: Float[Array, "layers Q K T kv_heads dim"]
    suffix_len: Int32[Array, "Q K"]

    @property
    def capacity(self) -> int:
        """T, suffix slots of a sibling."""
        return self.suffix_k.shape[3]


def cache_from_packed(
    k: Float[Array, "layers Q L kv_heads dim"],
    v: Float[Array, "layers Q L kv_heads dim"],
    *,
    prefix_slots: int,
    siblings: int,
    suffix_slots: int,
    capacity: int,
    prefix_len: Int32[Array, "Q"],
    suffix_len: Int32[Array, "Q K"],
) -> DecodeCache:
    """Split the keys and values of packed rows [prefix slots | siblings x suffix slots] into a cache.

    Args:
        k, v: what `Qwen25VL.hidden(..., return_kv=True)` gives, L = prefix_slots + siblings * suffix_slots.
        capacity: T, suffix slots of the cache, at least suffix_slots.
        prefix_len, suffix_len: valid slots, which come first in their part (padding on the right).

    Raises:
        ValueError: L is not that of the layout, or the capacity is too small.
    """
    length = prefix_slots + siblings * suffix_slots
    if k.shape[2] != length or capacity < suffix_slots:
        raise ValueError(
            f"rows of {k.shape[2]} slots, capacity {capacity}: expected {prefix_slots} + {siblings} x "
            f"{suffix_slots} = {length} slots and a capacity of at least {suffix_slots}"
        )

    def suffix(x):
        own = x[:, :, prefix_slots:].reshape(*x.shape[:2], siblings, suffix_slots, *x.shape[3:])
        return jnp.pad(own, [(0, 0)] * 3 + [(0, capacity - suffix_slots)] + [(0, 0)] * 2)

    return DecodeCache(
        prefix_k=k[:, :, :prefix_slots],
        prefix_v=v[:, :, :prefix_slots],
        prefix_len=prefix_len,
        suffix_k=suffix(k),
        suffix_v=suffix(v),
        suffix_len=suffix_len,
    )
