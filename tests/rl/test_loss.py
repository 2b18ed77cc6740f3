"""The loss against numbers worked out by hand and an independent float64 implementation."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memocr_jax.config import Config, ModelConfig, RLConfig, validate
from memocr_jax.core.errors import UserError
from memocr_jax.rl.advantages import group_advantages
from memocr_jax.rl.loss import Denominators, aggregate, clipped_policy_loss, kl_estimate, policy_loss

LOG2 = math.log(2)


def on_device(*arrays):
    """The arrays as the loss takes them: integers are int32."""
    return [jnp.asarray(x, jnp.int32 if np.issubdtype(x.dtype, np.integer) else None) for x in arrays]


def test_k3_is_clamped_so_that_one_token_cannot_decide_a_step():
    d = jnp.array([[-30.0, -1.0, 1.0, 2.0, 20.0, 30.0]])
    logp = jnp.zeros_like(d)
    value, gradient = jax.value_and_grad(lambda logp: kl_estimate(logp, d, "k3").sum())(logp)
    # Inside the bounds k3 is exp(d) - 1 - d and its gradient 1 - exp(d). For d = -30, 20 and 30 it is beyond
    # 10, where the gradient is 0.
    inside = sum(math.exp(x) - 1 - x for x in (-1.0, 1.0, 2.0))
    assert float(value) == pytest.approx(inside + 3 * 10, rel=1e-5)
    expected = [0.0, 1 - math.exp(-1.0), 1 - math.e, 1 - math.exp(2.0), 0.0, 0.0]
    np.testing.assert_allclose(np.asarray(gradient)[0], expected, rtol=1e-5)
    free = jax.grad(lambda logp: kl_estimate(logp, d, "k3", clamp=False).sum())(logp)
    assert float(free[0, 4]) == pytest.approx(1 - math.exp(20.0), rel=1e-5)  # -4.9e8


def policy(ratio, advantage, **options):
    """Loss of one token, and the name of the clip that binds."""
    log_ratio, advantage = jnp.array([[math.log(ratio)]]), jnp.array([[advantage]])
    loss, *clips = clipped_policy_loss(log_ratio, advantage, RLConfig(**options))
    names = [name for name, clip in zip(("low", "high", "dual"), clips, strict=True) if clip[0, 0]]
    return float(loss[0, 0]), "+".join(names)


def test_clip_by_hand():
    # ratio 2, A = 1, clip .2: -min(2, 1.2) = -1.2, and the clip is active.
    assert policy(2.0, 1.0) == (pytest.approx(-1.2), "high")
    # ratio .5, A = 1: -min(.5, .8) = -.5: a good token that became unlikely is pulled back in full.
    assert policy(0.5, 1.0) == (pytest.approx(-0.5), "")
    # ratio 2, A = -1: -min(-2, -1.2) = 2. ratio .5, A = -1: -min(-.5, -.8) = .8, clipped.
    assert policy(2.0, -1.0) == (pytest.approx(2.0), "")
    assert policy(0.5, -1.0) == (pytest.approx(0.8), "low")
    # Clip-higher: only the upper bound moves.
    assert policy(2.0, 1.0, clip_high=0.28) == (pytest.approx(-1.28), "high")
    # Dual clip c = 3: ratio 5, A = -1 costs 3 instead of 5; positive advantages are untouched.
    assert policy(5.0, -1.0, dual_clip=3.0) == (pytest.approx(3.0), "dual")
    assert policy(5.0, 1.0, dual_clip=3.0) == (pytest.approx(-1.2), "high")


def test_kl_estimators_by_hand():
    # logp = log .5, ref_logp = log .25, d = -log 2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = .5 - 1 + log 2.
    logp, ref = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.25]]))
    assert float(kl_estimate(logp, ref, "k1")[0, 0]) == pytest.approx(LOG2)
    assert float(kl_estimate(logp, ref, "k2")[0, 0]) == pytest.approx(LOG2**2 / 2)
    assert float(kl_estimate(logp, ref, "k3")[0, 0]) == pytest.approx(LOG2 - 0.5)


def test_k1_and_k3_estimate_the_same_kl():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    exact = float((p * np.log(p / q)).sum())
    for estimator in ("k1", "k3"):  # expectations under p, summed exactly
        values = np.asarray(kl_estimate(jnp.log(p)[None], jnp.log(q)[None], estimator, clamp=False))[0]
        assert float((p * values).sum()) == pytest.approx(exact, rel=1e-4)


def test_aggregation_by_hand():
    # Two turns in one row: losses (1, 3) and (5, 7, 9); then a padding slot that must not count.
    loss = jnp.array([[1.0, 3.0, 5.0, 7.0, 9.0, 100.0]])
    mask = jnp.array([[True] * 5 + [False]])
    sequence = jnp.array([[0, 0, 1, 1, 1, 0]])
    n = Denominators(jnp.float32(5), jnp.float32(2), jnp.float32(4))

    def value(how):
        return float(aggregate(loss, mask, sequence, n, how))

    assert value("token_mean") == pytest.approx(25 / 5)
    assert value("sequence_mean") == pytest.approx((2 + 7) / 2)
    assert value("constant_length") == pytest.approx(25 / (2 * 4))


def test_sequence_ratio_by_hand():
    # A turn of two tokens with ratios 2 and 4.5: their geometric mean is 3. A turn of one: 0.5.
    logp = jnp.log(jnp.array([[2.0, 4.5, 0.5, 77.0]]))
    mask, sequence = jnp.array([[True, True, True, False]]), jnp.array([[0, 0, 1, 0]])
    zeros, ones = jnp.zeros((1, 4)), jnp.ones((1, 4))
    rl = RLConfig(ratio="sequence", clip_high=9.0)
    out = policy_loss(logp, zeros, zeros, ones, mask, sequence, rl)
    np.testing.assert_allclose(out.ratio, [[3, 3, 0.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(out.loss, [[-3, -3, -0.5, 0]], rtol=1e-6)
    assert not out.clipped_low.any() and not out.clipped_high.any()


def test_truncated_importance_weights_by_hand():
    # old / sampler is 1.5, 4 and 0.1; the cap 2 cuts the second. A = 1 and ratio 1: the loss is -weight.
    old, sampler = jnp.log(jnp.array([[0.3, 0.4, 0.05, 0.5]])), jnp.log(jnp.array([[0.2, 0.1, 0.5, 0.5]]))
    mask, sequence = jnp.array([[True, True, True, False]]), jnp.zeros((1, 4), int)
    out = policy_loss(old, old, sampler, jnp.ones((1, 4)), mask, sequence, RLConfig(tis_cap=2.0))
    np.testing.assert_allclose(out.tis_weight, [[1.5, 2, 0.1, 0]], rtol=1e-6)
    np.testing.assert_allclose(out.loss, [[-1.5, -2, -0.1, 0]], rtol=1e-6)
    assert out.tis_truncated.tolist() == [[False, True, False, False]]


def test_what_is_not_finite_in_padding_does_no_harm():
    mask, sequence = jnp.array([[True, False]]), jnp.zeros((1, 2), int)
    bad = jnp.array([[-1.0, jnp.nan]])

    def loss(logp):
        rl = RLConfig(ratio="sequence", tis_cap=2.0)
        return policy_loss(logp, bad, bad, bad, mask, sequence, rl).loss.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array([[-1.0, 1e4]]))
    assert np.isfinite(value) and gradient.tolist() == [[1.0, 0.0]]


def reference(logp, old, sampler, ref, advantage, turns, rl, longest):
    """Loss and its gradient with respect to logp, from the formulas: float64, turn by turn, token by token.

    `turns` lists the (row, slot) pairs of each turn.
    """
    total, gradient = 0.0, np.zeros(logp.shape)
    tokens = sum(len(turn) for turn in turns)
    for turn in turns:
        start = {at: (sampler if rl.old_logp == "sampler" else old)[at] for at in turn}
        mean = sum(logp[at] - start[at] for at in turn) / len(turn)
        for at in turn:
            weight = {
                "token_mean": 1 / tokens,
                "sequence_mean": 1 / len(turns) / len(turn),
                "constant_length": 1 / len(turns) / longest,
            }[rl.aggregation]
            a = advantage[at]
            r = math.exp(mean if rl.ratio == "sequence" else logp[at] - start[at])
            low, high = 1 - rl.clip_low, 1 + rl.clip_high
            if -a * r >= -a * min(max(r, low), high):
                loss, slope = -a * r, -a * r
            else:
                loss, slope = -a * min(max(r, low), high), 0.0
            if rl.dual_clip and a < 0 and loss > -rl.dual_clip * a:
                loss, slope = -rl.dual_clip * a, 0.0
            if rl.tis_cap:
                importance = min(math.exp(start[at] - sampler[at]), rl.tis_cap)
                loss, slope = importance * loss, importance * slope
            kl, kl_slope = 0.0, 0.0
            if rl.kl_coef:
                d = ref[at] - logp[at]
                kl, kl_slope = {
                    "k1": (-d, 1.0),
                    "k2": (d * d / 2, -d),
                    "k3": (math.exp(d) - 1 - d, 1 - math.exp(d)) if math.exp(d) - 1 - d < 10 else (10.0, 0.0),
                }[rl.kl_estimator]
            total += weight * (loss + rl.kl_coef * kl)
            gradient[at] += weight * (slope + rl.kl_coef * kl_slope)
    return total, gradient


def ours(logp, old, sampler, ref, advantage, mask, sequence, n, rl):
    """The loss as the learner puts it together."""
    start = sampler if rl.old_logp == "sampler" else old
    loss = policy_loss(logp, start, sampler, advantage, mask, sequence, rl).loss
    if rl.kl_coef:
        loss += rl.kl_coef * kl_estimate(logp, ref, rl.kl_estimator)
    return aggregate(loss, mask, sequence, n, rl.aggregation)


OPTIONS = {
    "ratio": ("token", "sequence"),
    "old_logp": ("recomputed", "sampler"),
    "tis_cap": (0.0, 1.5),
    "staleness": (0, 1),
    "aggregation": ("token_mean", "sequence_mean", "constant_length"),
    "clip_high": (0.2, 0.28),
    "dual_clip": (0.0, 3.0),
    "normalize_by_std": (False, True),
}
# The estimator matters only where there is a coefficient.
KL = ({"kl_coef": 0.0}, *({"kl_coef": 0.3, "kl_estimator": k} for k in ("k1", "k2", "k3")))


def combinations():
    for values in itertools.product(*OPTIONS.values()):
        for kl in KL:
            yield RLConfig(**dict(zip(OPTIONS, values, strict=True)), **kl)


def forbidden(rl):
    """The combinations that are refused, in one place, and why: see `config.validate`."""
    twice = rl.old_logp == "sampler" and rl.tis_cap > 0
    uncorrected = rl.staleness == 1 and rl.old_logp == "recomputed" and not rl.tis_cap
    return twice or uncorrected


def test_what_is_refused_is_refused_with_a_reason():
    for rl in combinations():
        config = Config(model=ModelConfig(path="x"), rl=rl)
        if forbidden(rl):
            with pytest.raises(UserError, match=r"rl\.(tis_cap|staleness) .*set rl\."):
                validate(config)
        else:
            validate(config)


@pytest.mark.parametrize("std", [False, True], ids=["mean", "std"])
@pytest.mark.parametrize("kl", KL, ids=lambda kl: kl.get("kl_estimator", "without KL"))
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_equals_an_independent_float64_implementation(ratio, kl, std):
    """Advantages, loss and gradient, for every allowed combination, in float64 to 12 digits."""
    seen = 0
    for number, rl in enumerate(combinations()):
        chosen = (rl.ratio, rl.kl_coef, rl.normalize_by_std) == (ratio, kl["kl_coef"], std)
        # Staleness decides which numbers arrive here, not what is done with them.
        if not chosen or forbidden(rl) or rl.staleness or rl.kl_estimator != kl.get("kl_estimator", "k3"):
            continue
        rng = np.random.default_rng(number)
        # 2 questions x 3 samples: rewards, group by group, from the definition.
        rewards = rng.random((2, 3))
        each = [[r - g.mean() for r in g] for g in rewards]
        if std:
            each = [[a / (g.std(ddof=1) + 1e-6) for a in row] for row, g in zip(each, rewards, strict=True)]
        advantages = group_advantages(rewards[..., None], np.ones((2, 3, 1), bool), std)[..., 0]
        np.testing.assert_allclose(advantages, each, rtol=1e-12)

        # A row per question, a turn per sample, in slots that are partly padding.
        shape = (2, 9)
        sequence = np.sort(rng.integers(0, 3, shape), axis=1)
        mask = rng.random(shape) < 0.8
        at = [(b, t) for b, t in np.ndindex(shape) if mask[b, t]]
        turns = [[x for x in at if (x[0], sequence[x]) == turn] for turn in np.ndindex(2, 3)]
        turns = [turn for turn in turns if turn]
        old = -rng.gamma(2.0, 1.0, shape)
        logp, sampler, ref = (old + rng.normal(0, 0.4, shape) for _ in range(3))
        logp[0] += 2 * np.sign(rng.normal(size=9))  # far enough for every clip
        advantage = np.take_along_axis(np.array(each), sequence, axis=1)
        expected, expected_gradient = reference(logp, old, sampler, ref, advantage, turns, rl, 12)

        with jax.enable_x64(True):
            n = Denominators(*on_device(np.float64(mask.sum()), np.float64(len(turns)), np.float64(12)))
            advantage = np.take_along_axis(advantages, sequence, axis=1)
            arrays = on_device(logp, old, sampler, ref, advantage, mask, sequence)
            value, gradient = jax.value_and_grad(ours)(*arrays, n, rl)
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14, err_msg=str(rl))
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-11, atol=1e-14, err_msg=str(rl))
        seen += 1
    assert seen == 3 * 3 * 2 * 2  # old_logp and tis_cap, aggregation, clip_high, dual_clip


def test_in_float32_as_it_is_trained():
    base = RLConfig(tis_cap=2.0, kl_coef=0.3, dual_clip=3.0, aggregation="sequence_mean")
    for rl in (base, dataclasses.replace(base, ratio="sequence")):
        rng = np.random.default_rng(0)
        shape = (3, 10)
        old = -rng.gamma(2.0, 1.0, shape)
        logp, sampler, ref = (old + rng.normal(0, 0.4, shape) for _ in range(3))
        advantage, mask, sequence = rng.normal(size=(3, 1)), np.ones(shape, bool), np.arange(10) // 4
        sequence, advantage = np.broadcast_to(sequence, shape), np.broadcast_to(advantage, shape)
        turns = [[(b, t) for t in range(10) if t // 4 == k] for b in range(3) for k in range(3)]
        expected, expected_gradient = reference(logp, old, sampler, ref, advantage, turns, rl, 12)
        n = Denominators(*on_device(np.float32(30), np.float32(9), np.float32(12)))
        arrays = on_device(logp, old, sampler, ref, advantage, mask, sequence)
        value, gradient = jax.value_and_grad(ours)(*arrays, n, rl)
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_sequence_ratio_has_the_gradient_of_the_turn():
    """GSPO-token, as written, against the numeric derivative of GSPO's own objective (one ratio per turn)."""
    rng = np.random.default_rng(3)
    old, logp = -rng.gamma(2.0, 1.0, (2, 1, 6))
    logp, advantage = old + 0.1 * (logp - logp.mean()), np.full((1, 6), 0.7)
    rl = RLConfig(ratio="sequence", kl_coef=0.0, clip_high=9.0, clip_low=1.0)

    def gspo(logp):
        return -0.7 * 6 * np.exp((logp - old).sum() / 6)

    step = 1e-6 * np.eye(6).reshape(6, 1, 6)
    numeric = [(gspo(logp + d) - gspo(logp - d)) / 2e-6 for d in step]
    with jax.enable_x64(True):
        mask, sequence = np.ones((1, 6), bool), np.zeros((1, 6), int)
        fixed = on_device(old, old, advantage, mask, sequence)

        def loss(x):
            return policy_loss(x, *fixed, rl).loss.sum()

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(logp))
    assert float(value) == pytest.approx(gspo(logp))
    np.testing.assert_allclose(gradient[0], numeric, rtol=1e-7)
