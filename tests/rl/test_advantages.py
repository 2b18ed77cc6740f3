"""Group advantages, by hand (shared facts of arXiv 2601.21468, section 2 of our notes)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.rl.advantages import draft_advantages, group_advantages, read_advantages

WEIGHTS = (1.0, 0.7, 0.3)

# One question, G = 4 samples, objectives (std, augM, augQ).
REWARDS = np.array([[[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 1]]], float)
ALL = np.ones_like(REWARDS, bool)


def test_worked_by_hand():
    # Means over the group: std 2/4 = .5, augM 1/4 = .25, augQ 3/4 = .75.
    # A = reward - mean:
    #   sample 0: ( .5, -.25,  .25)
    #   sample 1: ( .5, -.25, -.75)
    #   sample 2: (-.5, -.25,  .25)
    #   sample 3: (-.5,  .75,  .25)
    advantage = group_advantages(REWARDS, ALL)
    expected = [[0.5, -0.25, 0.25], [0.5, -0.25, -0.75], [-0.5, -0.25, 0.25], [-0.5, 0.75, 0.25]]
    np.testing.assert_allclose(advantage[0], expected)

    # Reads are trained with w_k A_k; sample 3: 1 * -.5 = -.5, .7 * .75 = .525, .3 * .25 = .075.
    np.testing.assert_allclose(read_advantages(advantage, WEIGHTS)[0, 3], [-0.5, 0.525, 0.075])

    # Drafts with (A_std + .7 A_augM + .3 A_augQ) / 2:
    #   0: ( .5 - .175 + .075) / 2 =  .2
    #   1: ( .5 - .175 - .225) / 2 =  .05
    #   2: (-.5 - .175 + .075) / 2 = -.3
    #   3: (-.5 + .525 + .075) / 2 =  .05
    np.testing.assert_allclose(draft_advantages(advantage, WEIGHTS)[0], [0.2, 0.05, -0.3, 0.05])


def test_division_by_the_standard_deviation_is_a_switch():
    # std column: rewards 1 1 0 0, sample deviation sqrt(4 * .25 / 3) = .5774: A / std = +-.5 / .5774.
    advantage = group_advantages(REWARDS, ALL, normalize_by_std=True)
    np.testing.assert_allclose(advantage[0, :, 0], [0.86603, 0.86603, -0.86603, -0.86603], atol=1e-4)
    # A group that all scored alike has no signal, and no division by zero makes one.
    alike = group_advantages(np.ones((1, 4, 3)), ALL, normalize_by_std=True)
    np.testing.assert_array_equal(alike, 0)


def test_unscored_entries_weigh_nothing_and_move_no_mean():
    scored = ALL.copy()
    scored[0, 3] = False  # the page of sample 3 could not be drawn
    scored[0, 1, 2] = False  # the memory of sample 1 had too few words for a cloze
    advantage = group_advantages(REWARDS, scored)
    # std over samples 0..2: mean 2/3; augM: mean 0; augQ over samples 0 and 2: mean 1.
    np.testing.assert_allclose(advantage[0, :, 0], [1 / 3, 1 / 3, -2 / 3, 0])
    np.testing.assert_allclose(advantage[0, :, 1], [0, 0, 0, 0])
    np.testing.assert_allclose(advantage[0, :, 2], [0, 0, 0, 0])
    # The mixture's denominator stays 1 + .7 + .3 = 2: an objective that is missing adds nothing.
    np.testing.assert_allclose(draft_advantages(advantage, WEIGHTS)[0], [1 / 6, 1 / 6, -1 / 3, 0])


def test_nothing_scored_at_all():
    advantage = group_advantages(REWARDS, np.zeros_like(ALL))
    np.testing.assert_array_equal(advantage, 0)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 9), st.booleans())
def test_sums_to_zero_over_what_was_scored(seed, q, g, normalize):
    rng = np.random.default_rng(seed)
    rewards, scored = rng.random((q, g, 3)), rng.random((q, g, 3)) < 0.7
    advantage = group_advantages(rewards, scored, normalize)
    np.testing.assert_allclose(advantage.sum(1), 0, atol=1e-6)
    assert (advantage[~scored] == 0).all()
    # What an unscored entry's reward says makes no difference.
    np.testing.assert_array_equal(
        advantage, group_advantages(np.where(scored, rewards, 9.0), scored, normalize)
    )
    # A group's advantages depend on that group alone.
    np.testing.assert_allclose(advantage[:1], group_advantages(rewards[:1], scored[:1], normalize))


def test_weights_of_one_objective_alone():
    advantage = group_advantages(REWARDS, ALL)
    np.testing.assert_allclose(draft_advantages(advantage, (1, 0, 0)), advantage[..., 0])
    assert draft_advantages(advantage, (2, 0, 0)) == pytest.approx(advantage[..., 0])
