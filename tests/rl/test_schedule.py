"""When rollouts happen: which weights a step is sampled with, and what a resumed run samples."""

import jax.numpy as jnp
import pytest

from memocr_jax.rl.schedule import Schedule


def run(staleness, steps, first=1, weights=0.0, next_policy=None):
    """A run whose update t adds 1 to the weights in place; returns [(step, weights it was sampled with)]."""
    policy = {"w": jnp.array(weights)}
    schedule = Schedule(lambda policy, step: (step, float(policy["w"])), staleness, steps, next_policy)
    sampled = []
    for step in range(first, steps + 1):
        sampled.append(schedule.take(policy, step))
        policy["w"].delete()  # the update consumes its input
        policy = {"w": jnp.array(float(weights) + step - first + 1)}
    schedule.close()
    return sampled, schedule, policy


def test_without_staleness_a_step_is_sampled_with_the_newest_weights():
    sampled, schedule, _ = run(0, 4)
    assert sampled == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]
    assert schedule.next_policy is None


def test_with_staleness_a_step_is_sampled_with_the_weights_before_the_last_update():
    sampled, *_ = run(1, 4)
    assert sampled == [(1, 0.0), (2, 0.0), (3, 1.0), (4, 2.0)]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_samples_with_the_same_weights(cut):
    whole, *_ = run(1, 4)
    before, schedule, policy = run(1, cut)
    after, *_ = run(1, 4, cut + 1, float(policy["w"]), schedule.next_policy)
    assert before + after == whole


def test_an_error_while_sampling_reaches_the_step_that_wanted_it():
    def fail(policy, step):
        raise RuntimeError(f"step {step}")

    schedule = Schedule(fail, 1, 3)
    with pytest.raises(RuntimeError, match="step 1"):
        schedule.take({}, 1)
    schedule.close()
