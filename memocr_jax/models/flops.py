"""Counts the model's floating-point operations from its shapes; a multiplication and an addition are two.

Matrix products and attention are counted as the mathematics needs them, without rematerialisation, padding
and masked scores. The counts are used for the utilisation of hardware (MFU, arXiv 2204.02311).
"""

from __future__ import annotations

from memocr_jax.models.config import Qwen25VLConfig

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bfloat16 operations per second, by the beginning of a `device_kind` (the vendors' figures)."""


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 operations per second of a device, or None where it is not known (a CPU)."""
    names = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def decoder_flops(config: Qwen25VLConfig, tokens: int, pairs: int) -> float:
    """Forward pass of the decoder's layers over `tokens` that see `pairs` (query, key) pairs in all."""
    c = config.text
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    weights = c.hidden_size * (2 * queries + 2 * keys) + 3 * c.hidden_size * c.intermediate_size
    return c.num_hidden_layers * (2.0 * weights * tokens + 4.0 * queries * pairs)


def head_flops(config: Qwen25VLConfig, tokens: int) -> float:
    """Logits of `tokens` positions."""
    return 2.0 * config.text.hidden_size * config.text.vocab_size * tokens


def vision_flops(config: Qwen25VLConfig, patches: int, images: int = 1) -> float:
    """Forward pass of the vision tower over `images` images that have `patches` patches together.

    Attention is counted as windowed, and as full over an image of average size in the listed blocks.
    """
    c = config.vision
    hidden, merged = c.hidden_size, c.hidden_size * c.merge_unit
    block = 4 * hidden * hidden + 3 * hidden * c.intermediate_size
    full = len(c.fullatt_block_indexes)
    pairs = full * patches**2 / max(images, 1) + (c.depth - full) * patches * c.window_patches
    merger = merged * merged + merged * c.out_hidden_size
    embed = c.patch_features * hidden
    products = 2.0 * (c.depth * block + embed) * patches + 2.0 * merger * patches / c.merge_unit
    return products + 4.0 * hidden * pairs


def row_pairs(prefix: int, siblings: list[int]) -> int:
    """Number of (query, key) pairs of a packed row: a token sees the prefix and its own sibling so far."""
    own = sum(s * prefix + s * (s + 1) // 2 for s in siblings)
    return prefix * (prefix + 1) // 2 + own
