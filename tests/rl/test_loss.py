"""The loss against numbers worked out by hand and an independent float64 implementation."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memocr_jax.config import RLConfig
from memocr_jax.rl.loss import Denominators, aggregate, clipped_policy_loss, kl_estimate

LOG2 = math.log(2)


def policy(ratio, advantage, **options):
    rl = RLConfig(**options)
    loss, clipped = clipped_policy_loss(
        jnp.array([[math.log(ratio)]]), jnp.zeros((1, 1)), jnp.array([[advantage]]), rl
    )
    return float(loss[0, 0]), bool(clipped[0, 0])


def test_clip_by_hand():
    # ratio 2, A = 1, clip .2: -min(2, 1.2) = -1.2, and the clip is active.
    assert policy(2.0, 1.0) == (pytest.approx(-1.2), True)
    # ratio .5, A = 1: -min(.5, .8) = -.5: a good token that became unlikely is pulled back in full.
    assert policy(0.5, 1.0) == (pytest.approx(-0.5), False)
    # ratio 2, A = -1: -min(-2, -1.2) = 2. ratio .5, A = -1: -min(-.5, -.8) = .8, clipped.
    assert policy(2.0, -1.0) == (pytest.approx(2.0), False)
    assert policy(0.5, -1.0) == (pytest.approx(0.8), True)
    # Clip-higher: only the upper bound moves.
    assert policy(2.0, 1.0, clip_high=0.28) == (pytest.approx(-1.28), True)
    # Dual clip c = 3: ratio 5, A = -1 costs 3 instead of 5; positive advantages are untouched.
    assert policy(5.0, -1.0, dual_clip=3.0) == (pytest.approx(3.0), False)
    assert policy(5.0, 1.0, dual_clip=3.0) == (pytest.approx(-1.2), True)


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
        values = np.asarray(kl_estimate(jnp.log(p)[None], jnp.log(q)[None], estimator))[0]
        assert float((p * values).sum()) == pytest.approx(exact, rel=1e-4)


def test_aggregation_by_hand():
    # Two turns in one row: losses (1, 3) and (5, 7, 9); then a padding slot that must not count.
    loss = jnp.array([[1.0, 3.0, 5.0, 7.0, 9.0, 100.0]])
    mask = jnp.array([[True] * 5 + [False]])
    sequence = jnp.array([[0, 0, 1, 1, 1, 0]])
    n = Denominators(jnp.float32(5), jnp.float32(2), jnp.float32(4))
    value = lambda how: float(aggregate(loss, mask, sequence, n, how))  # noqa: E731
    assert value("token_mean") == pytest.approx(25 / 5)
    assert value("sequence_mean") == pytest.approx((2 + 7) / 2)
    assert value("constant_length") == pytest.approx(25 / (2 * 4))


def reference(logp, old, ref, advantage, mask, sequence, rl, longest):
    """The same from the formulas: float64, token by token, with its gradient with respect to logp."""
    rows, tokens = logp.shape
    turns = {}
    for b, t in zip(*np.nonzero(mask), strict=True):
        turns.setdefault((b, sequence[b, t]), []).append((b, t))
    total, gradient = 0.0, np.zeros((rows, tokens))
    for members in turns.values():
        for b, t in members:
            if rl.aggregation == "token_mean":
                weight = 1 / mask.sum()
            elif rl.aggregation == "sequence_mean":
                weight = 1 / len(turns) / len(members)
            else:
                weight = 1 / len(turns) / longest
            a, r = advantage[b, t], math.exp(logp[b, t] - old[b, t])
            low, high = 1 - rl.clip_low, 1 + rl.clip_high
            clip = min(max(r, low), high)
            loss, slope = max((-a * r, -a * r), (-a * clip, -a * r if low < r < high else 0.0))
            if rl.dual_clip and a < 0 and loss > -rl.dual_clip * a:
                loss, slope = -rl.dual_clip * a, 0.0
            d = ref[b, t] - logp[b, t]
            kl, kl_slope = {
                "k1": (-d, 1.0),
                "k2": (d * d / 2, -d),
                "k3": (math.exp(d) - 1 - d, 1 - math.exp(d)),
            }[rl.kl_estimator]
            total += weight * (loss + rl.kl_coef * kl)
            gradient[b, t] += weight * (slope + rl.kl_coef * kl_slope)
    return total, gradient


OPTIONS = list(
    itertools.product(
        ("token_mean", "sequence_mean", "constant_length"), ("k1", "k2", "k3"), (0.2, 0.28), (0.0, 3.0)
    )
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_an_independent_float64_implementation(options):
    aggregation, estimator, clip_high, dual_clip = options
    rl = dataclasses.replace(
        RLConfig(),
        aggregation=aggregation,
        kl_estimator=estimator,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coef=0.3,
    )
    rng = np.random.default_rng(OPTIONS.index(options))
    shape = (3, 10)
    logp, old, ref = (-rng.gamma(2.0, 1.0, shape) for _ in range(3))
    advantage, mask = rng.normal(size=shape), rng.random(shape) < 0.8
    sequence = np.sort(rng.integers(0, 3, shape), axis=1)
    turns = len({(b, sequence[b, t]) for b, t in zip(*np.nonzero(mask), strict=True)})
    n = Denominators(jnp.float32(mask.sum()), jnp.float32(turns), jnp.float32(12))

    def ours(logp):
        loss, _ = clipped_policy_loss(logp, jnp.asarray(old), jnp.asarray(advantage), rl)
        kl = kl_estimate(logp, jnp.asarray(ref), rl.kl_estimator)
        return aggregate(loss + rl.kl_coef * kl, jnp.asarray(mask), jnp.asarray(sequence), n, rl.aggregation)

    expected, expected_gradient = reference(logp, old, ref, advantage, mask, sequence, rl, 12)
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logp))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
