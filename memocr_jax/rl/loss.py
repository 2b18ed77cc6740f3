"""The policy-gradient loss: pure functions of log-probabilities, as sums, so that micro-batches add up."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from memocr_jax.config import RLConfig


class Denominators(NamedTuple):
    """What a mini-batch's sums are divided by, known before the first micro-batch."""

    tokens: Float[Array, ""]
    sequences: Float[Array, ""]
    longest: Float[Array, ""]
    """Tokens of the longest possible completion (constant-length aggregation)."""


def clipped_policy_loss(
    logp: Float[Array, "B T"],
    old_logp: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    rl: RLConfig,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Token losses of PPO's clipped objective (arXiv 1707.06347, eq. 7), and where the clip was active.

    The ratio may leave [1 - clip_low, 1 + clip_high] without effect (clip-higher when they differ,
    arXiv 2503.14476). With `dual_clip` c > 1 a negative advantage costs at most -c A (arXiv 1912.09729).
    """
    ratio = jnp.exp(logp - old_logp)
    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1 - rl.clip_low, 1 + rl.clip_high)
    loss = jnp.maximum(plain, clipped)
    if rl.dual_clip:
        loss = jnp.where(advantage < 0, jnp.minimum(loss, -rl.dual_clip * advantage), loss)
    return loss, clipped > plain


def kl_estimate(
    logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"], estimator: str
) -> Float[Array, "B T"]:
    """Per-token estimate of KL(policy || reference) from sampled tokens (Schulman, 2020).

    With d = ref_logp - logp: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (never negative, low variance).
    """
    d = ref_logp - logp
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    return jnp.expm1(d) - d


def aggregate(
    token_loss: Float[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
    sequence: Int32[Array, "B T"],
    denominators: Denominators,
    aggregation: str,
) -> Float[Array, ""]:
    """This micro-batch's share of the mini-batch's loss; shares add up to it.

    token_mean: every sampled token of the mini-batch weighs the same (DAPO, arXiv 2503.14476).
    sequence_mean: the mean over turns of the mean over a turn's tokens (GRPO, arXiv 2402.03300).
    constant_length: the sum over tokens over turns times the longest completion (Dr. GRPO, arXiv 2503.20783).
    """
    token_loss = jnp.where(loss_mask, token_loss, 0.0)
    if aggregation == "token_mean":
        return token_loss.sum() / denominators.tokens
    if aggregation == "constant_length":
        return token_loss.sum() / (denominators.sequences * denominators.longest)
    # The length of each token's own turn, by comparing turns: T x T, but free of a bound on siblings.
    same = (sequence[:, :, None] == sequence[:, None, :]) & loss_mask[:, None, :]
    length = jnp.maximum(same.sum(-1), 1)
    return (token_loss / length).sum() / denominators.sequences
