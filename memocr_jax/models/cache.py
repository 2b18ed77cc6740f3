"""The key/value cache of decoding: groups with a shared prefix, rows (siblings) with their own suffixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

Layers = Any
"""One array of all layers with a leading axis `layers`, or a tuple of one array per layer (`per_layer`)."""


class DecodeCache(NamedTuple):
    """Keys (rotated) and values of all layers. Slots at or above a length are not valid.

    Q groups with P prefix slots each, R rows with T suffix slots each. A row is a sibling of one group:
    `members` gives the rows of a group, `place` the place of a row in it. Heads come before slots and keys
    have their slots last, as the products read them, so that nothing is transposed for every token.
    """

    prefix_k: Layers
    """Float[layers, Q, kv_heads, dim, P]"""
    prefix_v: Layers
    """Float[layers, Q, kv_heads, P, dim]"""
    prefix_len: Int32[Array, "Q"]
    suffix_k: Layers
    """Float[layers, R, kv_heads, dim, T]"""
    suffix_v: Layers
    """Float[layers, R, kv_heads, T, dim]"""
    suffix_len: Int32[Array, "R"]
    members: Int32[Array, "Q K"]
    """Row of each sibling of a group, R where there is none."""
    place: Int32[Array, "R"]
    """Index of a row in the flattened `members`; any value for a row that is not in use."""

    @property
    def capacity(self) -> int:
        """T, suffix slots of a row."""
        return jax.tree.leaves(self.suffix_v)[0].shape[-2]

    def map_layers(self, change: Callable[[str, Layers], Layers]) -> DecodeCache:
        """The cache with `change(name, layers)` for each of its four key and value fields."""
        names = ("prefix_k", "prefix_v", "suffix_k", "suffix_v")
        return self._replace(**{name: change(name, getattr(self, name)) for name in names})


def per_layer(layers: Layers) -> tuple[Array, ...]:
    """The cache with one array per layer. A CPU would copy a layer of a stack before each use."""
    return tuple(layers) if isinstance(layers, tuple) else tuple(layers[i] for i in range(layers.shape[0]))


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

    Row q * K + k of the cache is sibling k of group q.

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
    groups = k.shape[1]
    prefix_k, suffix_k = split_packed(k, prefix_slots, siblings, keys=True)
    prefix_v, suffix_v = split_packed(v, prefix_slots, siblings, keys=False)
    room = capacity - suffix_slots
    return DecodeCache(
        prefix_k=prefix_k,
        prefix_v=prefix_v,
        prefix_len=prefix_len,
        suffix_k=jnp.pad(suffix_k, [(0, 0)] * 4 + [(0, room)]),
        suffix_v=jnp.pad(suffix_v, [(0, 0)] * 3 + [(0, room), (0, 0)]),
        suffix_len=suffix_len.reshape(-1),
        members=jnp.arange(groups * siblings, dtype=jnp.int32).reshape(groups, siblings),
        place=jnp.arange(groups * siblings, dtype=jnp.int32),
    )


def split_packed(
    x: Float[Array, "layers Q L kv_heads dim"], prefix_slots: int, siblings: int, *, keys: bool
) -> tuple[Array, Array]:
    """The prefixes' and the siblings' parts of packed rows, in the cache's order of axes.

    Returns keys as [layers, Q, kv_heads, dim, P] and [layers, Q * K, kv_heads, dim, S], values with the last
    two axes the other way round.
    """
    order = (0, 1, 3, 4, 2) if keys else (0, 1, 3, 2, 4)
    prefix, own = x[:, :, :prefix_slots], x[:, :, prefix_slots:]
    slots = own.shape[2] // siblings
    own = own.reshape(x.shape[0], x.shape[1] * siblings, slots, *x.shape[3:])
    return prefix.transpose(order), own.transpose(order)
