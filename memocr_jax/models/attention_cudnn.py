"""cuDNN's flash attention, for NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from memocr_jax.models.attention_parts import MASKED
from memocr_jax.models.jax_internals import internal

_MODULE = "jax._src.cudnn.fused_attention_stablehlo"


def require_internals() -> tuple[Any, Any]:
    """JAX's internal functions for cuDNN's attention. Raises UserError when this JAX has others."""
    arguments = ("q_seqlen", "kv_seqlen", "scale", "mask_type", "return_residual")
    attention = internal("cudnn", _MODULE, "dot_product_attention", arguments)
    return attention, internal("cudnn", _MODULE, "MaskType")


def causal_cudnn(
    q: Float[Array, "B L heads dim"],
    k: Float[Array, "B L kv_heads dim"],
    v: Float[Array, "B L kv_heads dim"],
    lengths: Int32[Array, "B"],
) -> Float[Array, "B L heads dim"]:
    """Causal attention of rows with the given numbers of valid tokens, which come first."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def flash_cudnn(q: Array, k: Array, v: Array, valid: Array, causal: bool) -> tuple[Array, Array]:
    """`attention_parts.Kernel` by cuDNN.

    `jax.nn.dot_product_attention` would round the log-sum-exp to bfloat16 (an error of up to 3% in the
    weights of a merge), so this calls the function below it, which keeps float32.
    """
    attention, masks = require_internals()
    out, lse = attention(
        q,
        k,
        v,
        q_seqlen=jnp.full(q.shape[0], q.shape[1], jnp.int32),
        # cuDNN would divide by an empty sum: a part without keys reads one key, and is masked below.
        kv_seqlen=jnp.maximum(valid, 1).astype(jnp.int32),
        scale=q.shape[-1] ** -0.5,
        mask_type=masks.PADDING_CAUSAL if causal else masks.PADDING,
        return_residual=True,
    )
    lse = jnp.where((valid > 0)[:, None, None], lse.transpose(0, 2, 1), MASKED)
    return out, lse
