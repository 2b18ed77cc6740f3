"""The policy-gradient loss: pure functions of log-probabilities, as sums, so that micro-batches add up.

`grpo_loss` is the whole loss of a micro-batch, and `Learner.update` (update.py) takes its gradient. With
`sampler` the policy that sampled, `old` the policy that a step's updates start from and `ref` the frozen
reference, a sampled token's loss is

    tis_weight(old, sampler) * clipped_policy_loss(logp - old, advantage) + kl_coef * kl_estimate(logp, ref)

Only `logp` is differentiated. `rl.old_logp: sampler` puts the sampler in the place of `old`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from memocr_jax.config import RLConfig
from memocr_jax.core.types import TrainBatch

K3_LOG_RATIO, K3_VALUE = 20.0, 10.0
"""Bounds of the k3 estimate and of its log-ratio, as the released trainer has them."""


class Denominators(NamedTuple):
    """The numbers that a mini-batch's sums are divided by, known before the first micro-batch."""

    tokens: Float[Array, ""]
    sequences: Float[Array, ""]
    longest: Float[Array, ""]
    """Tokens of the longest possible completion (constant-length aggregation)."""


class PolicyLoss(NamedTuple):
    """What `policy_loss` computes for every sampled token; 0 or False at padding."""

    loss: Float[Array, "B T"]
    ratio: Float[Array, "B T"]
    """The probability ratio that was clipped: the token's own, or its turn's."""
    clipped_low: Bool[Array, "B T"]
    """Whether the lower clip is active, so that the token has no gradient."""
    clipped_high: Bool[Array, "B T"]
    dual_clipped: Bool[Array, "B T"]
    """Whether the bound of dual clip is active."""
    tis_weight: Float[Array, "B T"]
    """1 where there is no importance weight."""
    tis_truncated: Bool[Array, "B T"]
    """Whether the importance weight was cut to `tis_cap`."""


_PER_TOKEN = ("ratio", "clipped_low", "clipped_high", "dual_clipped", "tis_weight", "tis_truncated")
"""Fields of `PolicyLoss` that are summed over tokens."""
SUMS = ("loss", "policy", "kl_loss", "kl", "entropy", "logp_gap", "logp_gap_tokens", *_PER_TOKEN)
"""Names of what `grpo_loss` sums."""


def grpo_loss(
    logp: Float[Array, "B T"],
    entropy: Float[Array, "B T"],
    batch: TrainBatch,
    old_logp: Float[Array, "B T"] | None,
    ref_logp: Float[Array, "B T"] | None,
    denominators: Denominators,
    at_start: Float[Array, ""],
    rl: RLConfig,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a micro-batch's sampled tokens under the policy that is trained, and its `SUMS`.

    Args:
        logp, entropy: of the policy that is trained.
        old_logp: of the policy that the step's updates start from; None where that is the same policy.
        ref_logp: of the reference; None without a KL term.
        denominators: of the whole mini-batch.
        at_start: 1 while the policy is still the one that the step began with, else 0. Only that policy's gap
            to the sampler is measured.
    """
    mask = batch.loss_mask
    now = jax.lax.stop_gradient(logp)
    start = now if old_logp is None else old_logp
    old = batch.sampler_logp if rl.old_logp == "sampler" else start
    policy = policy_loss(logp, old, batch.sampler_logp, batch.advantage, mask, batch.sequence, rl)
    kl = jnp.zeros_like(logp)
    if ref_logp is not None:
        kl = kl_estimate(
            jnp.where(mask, logp, 0.0), jnp.where(mask, ref_logp, 0.0), rl.kl_estimator, rl.kl_clamp
        )

    def mean(x: Array) -> Array:
        return aggregate(x, mask, batch.sequence, denominators, rl.aggregation)

    def total(x: Array) -> Array:
        return jnp.where(mask, x, 0.0).sum()

    policy_mean, kl_mean = mean(policy.loss), rl.kl_coef * mean(kl)
    loss = policy_mean + kl_mean
    return loss, {
        "loss": loss,
        "policy": policy_mean,
        "kl_loss": kl_mean,
        "kl": total(kl),
        "entropy": total(entropy),
        "logp_gap": at_start * total(jnp.abs(start - batch.sampler_logp)),
        "logp_gap_tokens": at_start * mask.sum(),
        **{name: total(getattr(policy, name)) for name in _PER_TOKEN},
    }


def policy_loss(
    logp: Float[Array, "B T"],
    old_logp: Float[Array, "B T"],
    sampler_logp: Float[Array, "B T"],
    advantage: Float[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
    sequence: Int32[Array, "B T"],
    rl: RLConfig,
) -> PolicyLoss:
    """Token losses of the policy, without the KL term.

    `sequence` numbers the turns of a row from 0; values where `loss_mask` is False do not matter, and need
    not be finite.
    """

    def zero_padding(x: Array) -> Array:
        return jnp.where(loss_mask, x, 0.0)

    logp, old_logp, sampler_logp, advantage = map(zero_padding, (logp, old_logp, sampler_logp, advantage))
    log_ratio = logp - old_logp
    if rl.ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, loss_mask, sequence)
    loss, low, high, dual = clipped_policy_loss(log_ratio, advantage, rl)
    weight, truncated = tis_weight(old_logp, sampler_logp, rl.tis_cap)
    return PolicyLoss(
        zero_padding(weight * loss),
        zero_padding(jnp.exp(log_ratio)),
        low & loss_mask,
        high & loss_mask,
        dual & loss_mask,
        zero_padding(weight),
        truncated & loss_mask,
    )


def sequence_log_ratio(
    log_ratio: Float[Array, "B T"], loss_mask: Bool[Array, "B T"], sequence: Int32[Array, "B T"]
) -> Float[Array, "B T"]:
    """Logarithm of GSPO's ratio of a turn, the geometric mean of its tokens' (arXiv 2507.18071, section 4.1).

    In the form of GSPO-token (section 4.3): at every token the value is the turn's and the gradient the
    token's own, so that the tokens of a turn may have weights of their own. Where they have none, the sum
    over the turn has the gradient of the turn's ratio.
    """
    length = jnp.maximum(turn_sum(jnp.ones_like(log_ratio), loss_mask, sequence), 1)
    of_turn = turn_sum(log_ratio, loss_mask, sequence) / length
    return jax.lax.stop_gradient(of_turn - log_ratio) + log_ratio


def clipped_policy_loss(
    log_ratio: Float[Array, "B T"], advantage: Float[Array, "B T"], rl: RLConfig
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Losses of PPO's clipped objective (arXiv 1707.06347, eq. 7); where its low, high and dual clips bind.

    The ratio may leave [1 - clip_low, 1 + clip_high] without effect (clip-higher when they differ,
    arXiv 2503.14476). With `dual_clip` c > 1 a negative advantage costs at most -c A (arXiv 1912.09729).
    """
    ratio = jnp.exp(log_ratio)
    plain = -advantage * ratio
    clipped = -advantage * jnp.clip(ratio, 1 - rl.clip_low, 1 + rl.clip_high)
    loss = jnp.maximum(plain, clipped)
    binds = clipped > plain
    low, high, dual = binds & (ratio < 1), binds & (ratio > 1), jnp.zeros_like(binds)
    if rl.dual_clip:
        bound = -rl.dual_clip * advantage
        dual = (advantage < 0) & (loss > bound)
        loss = jnp.where(dual, bound, loss)
    return loss, low, high, dual


def tis_weight(
    old_logp: Float[Array, "B T"], sampler_logp: Float[Array, "B T"], cap: float
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Truncated importance weight min(old / sampler, cap) of every token, and where it was truncated.

    Truncation bounds the variance (Ionides, 2008; rho-bar of V-trace, arXiv 1802.01561). The weights have no
    gradient. `cap` 0 is off: all weights are 1.
    """
    if not cap:
        return jnp.ones_like(old_logp), jnp.zeros(old_logp.shape, bool)
    weight = jnp.exp(jax.lax.stop_gradient(old_logp) - sampler_logp)
    return jnp.minimum(weight, cap), weight > cap


def kl_estimate(
    logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"], estimator: str, clamp: bool = True
) -> Float[Array, "B T"]:
    """Per-token estimate of KL(policy || reference) from sampled tokens (Schulman, 2020).

    With d = ref_logp - logp: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (never negative, low variance).
    `clamp` bounds d of k3 to +-K3_LOG_RATIO and its value to +-K3_VALUE, with the gradient 0 beyond. Without
    it, one token with d = 20 has the gradient -4.9e8 and decides a clipped step.
    """
    d = ref_logp - logp
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    if not clamp:
        return jnp.expm1(d) - d
    d = jnp.clip(d, -K3_LOG_RATIO, K3_LOG_RATIO)
    return jnp.clip(jnp.expm1(d) - d, -K3_VALUE, K3_VALUE)


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
    length = jnp.maximum(turn_sum(jnp.ones_like(token_loss), loss_mask, sequence), 1)
    return (token_loss / length).sum() / denominators.sequences


def turn_sum(
    x: Float[Array, "B T"], loss_mask: Bool[Array, "B T"], sequence: Int32[Array, "B T"]
) -> Float[Array, "B T"]:
    """The sum of `x` over the tokens of each token's own turn."""

    def of_row(x: Array, sequence: Array) -> Array:
        # A turn has at least one token, so a row has no more turns than slots.
        return jax.ops.segment_sum(x, sequence, num_segments=len(x))[sequence]

    return jax.vmap(of_row)(jnp.where(loss_mask, x, 0.0), sequence)
