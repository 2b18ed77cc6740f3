"""Drawing tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.config import SamplingConfig
from memocr_jax.core.rng import row_key
from memocr_jax.engine.sampling import RowSampling, _first_largest, sample_tokens, top_k_top_p_mask

EOS = (3,)


def draw(logits, sampling, keys=None, position=0):
    logits = jnp.asarray(logits, jnp.float32)
    if keys is None:
        keys = np.stack([row_key(0, "test", i) for i in range(len(logits))])
    return sample_tokens(logits, jnp.asarray(keys), jnp.int32(position), sampling, EOS)


def sorted_mask(logits, top_k, top_p):
    """The obvious way: sort, cut at k, cut where the cumulative share reaches p."""
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or len(order)]
    probs = np.exp(logits[kept] - logits[kept].max())
    probs /= probs.sum()
    enough = np.flatnonzero(np.cumsum(probs) >= top_p - 1e-7) if top_p < 1 else []
    kept = kept[: enough[0] + 1] if len(enough) else kept
    mask = np.zeros(len(logits), bool)
    mask[kept] = True
    return mask


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 7, 29]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.5, 3.0, 10.0]),
)
def test_mask_equals_sorting(seed, top_k, top_p, spread):
    logits = (np.random.default_rng(seed).normal(size=29) * spread).astype(np.float32)
    mask = np.asarray(top_k_top_p_mask(jnp.asarray(logits)[None], top_k, top_p))[0]
    np.testing.assert_array_equal(mask, sorted_mask(logits, top_k, top_p))


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -1.5, 0.0, 2.0]), min_size=7, max_size=7), min_size=1, max_size=3
    )
)
def test_the_first_of_the_largest_wins(rows):
    x = np.array(rows, np.float32)
    assert _first_largest(x).tolist() == x.argmax(-1).tolist()


def test_golden_mask():
    # probabilities .5 .25 .125 .125: p = .75 is reached by the first two, p = .76 needs a third; of the two
    # that tie at .125 both stay.
    logits = np.log([[0.5, 0.25, 0.125, 0.125]]).astype(np.float32)
    assert top_k_top_p_mask(jnp.asarray(logits), 0, 0.74)[0].tolist() == [True, True, False, False]
    assert top_k_top_p_mask(jnp.asarray(logits), 0, 0.76)[0].tolist() == [True, True, True, True]
    assert top_k_top_p_mask(jnp.asarray(logits), 1, 1.0)[0].tolist() == [True, False, False, False]


def test_frequencies_follow_the_tempered_distribution():
    logits = np.log([0.6, 0.3, 0.1]) * 2  # at temperature 2 the probabilities are .6 .3 .1
    n = 4000
    tokens, logp = draw(np.tile(logits, (n, 1)), SamplingConfig(temperature=2.0, top_p=1.0))
    share = np.bincount(tokens, minlength=3) / n
    # Three standard errors of a share of 4,000 draws are at most .024.
    np.testing.assert_allclose(share, [0.6, 0.3, 0.1], atol=0.024)
    np.testing.assert_allclose(logp, np.log([0.6, 0.3, 0.1])[tokens], atol=1e-6)


def test_logp_is_that_of_the_uncut_distribution():
    logits = np.log([[0.5, 0.3, 0.2]])
    token, logp = draw(logits, SamplingConfig(top_k=1))
    assert int(token[0]) == 0
    np.testing.assert_allclose(logp[0], np.log(0.5), atol=1e-6)


def test_a_row_draws_the_same_whatever_its_neighbours_and_its_place():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 50))
    keys = np.stack([row_key(0, "x", i) for i in range(6)])
    sampling = SamplingConfig(top_p=0.9)
    together = np.asarray(draw(logits, sampling, keys, 5)[0])
    order = rng.permutation(6)
    np.testing.assert_array_equal(
        np.asarray(draw(logits[order], sampling, keys[order], 5)[0]), together[order]
    )
    alone = [int(draw(logits[i : i + 1], sampling, keys[i : i + 1], 5)[0][0]) for i in range(6)]
    assert alone == together.tolist()


def test_position_changes_the_draw():
    logits = np.zeros((64, 1000))
    first, second = (np.asarray(draw(logits, SamplingConfig(), position=p)[0]) for p in (0, 1))
    assert (first != second).mean() > 0.9


def test_greedy_and_minimum_length():
    logits = [[0.0, 1.0, 0.5, 5.0]]  # the stop token 3 is likeliest
    greedy = SamplingConfig(temperature=0, min_new_tokens=2)
    assert [int(draw(logits, greedy, position=p)[0][0]) for p in range(4)] == [1, 1, 3, 3]
    sampled = SamplingConfig(temperature=1.0, top_k=1, min_new_tokens=2)
    assert [int(draw(logits, sampled, position=p)[0][0]) for p in range(4)] == [1, 1, 3, 3]


@pytest.mark.parametrize("vocab", [7, 151_936])
def test_nothing_outside_the_mask_is_drawn(vocab):
    logits = np.random.default_rng(1).normal(size=(8, vocab)) * 4
    tokens, _ = jax.jit(draw, static_argnums=1)(logits.astype(np.float32), SamplingConfig(top_k=3))
    for row, token in zip(logits, np.asarray(tokens), strict=True):
        assert token in np.argsort(-row)[:3]


def test_rows_that_sample_differently_share_a_batch():
    logits = np.random.default_rng(2).normal(size=(5, 60)) * 3
    keys = np.stack([row_key(0, "y", i) for i in range(5)])
    configs = [
        SamplingConfig(temperature=0),
        SamplingConfig(top_p=1.0),
        SamplingConfig(temperature=0.5, top_p=0.6),
        SamplingConfig(top_k=2, top_p=1.0),
        SamplingConfig(temperature=2.0, top_k=9, top_p=0.8, min_new_tokens=4),
    ]
    positions = np.arange(5, dtype=np.int32)
    tokens, logp = sample_tokens(jnp.asarray(logits), keys, positions, RowSampling.of(*configs), EOS)
    for i, config in enumerate(configs):
        alone = draw(logits[i : i + 1], config, keys[i : i + 1], i)
        assert int(alone[0][0]) == int(tokens[i])
        np.testing.assert_allclose(alone[1][0], logp[i], atol=1e-6)
