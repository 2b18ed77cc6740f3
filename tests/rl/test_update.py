"""The learner: what is computed does not depend on how it is packed, batched or spread; and it learns."""

import dataclasses

import jax
import numpy as np
import pytest

from memocr_jax.config import EngineConfig, LoraConfig, MeshConfig, OptimizerConfig, RLConfig, SamplingConfig
from memocr_jax.engine import Engine, PromptGroup
from memocr_jax.metrics import Stopwatch
from memocr_jax.rl.pack import Packing, WeightedTurn, pack_turns
from memocr_jax.rl.update import Learner
from memocr_jax.rng import row_key
from memocr_jax.sharding import make_mesh
from memocr_jax.types import Turn, TurnKind

RL = RLConfig(kl_coef=0.1)
# A large eps keeps the update nearly linear in the gradient: Adam would blow rounding of tiny gradients up.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-2)
SAMPLING = SamplingConfig(top_p=1.0)


def prompts():
    """Two groups of three drafts, and two pages, one read twice."""
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(8, 200, n).astype(np.int32)  # noqa: E731
    key = lambda *labels: row_key(0, "t", *labels)  # noqa: E731
    groups = [
        PromptGroup(ids(9 + 4 * q), tuple(ids(2 + g) for g in range(3)), tuple(key(q, g) for g in range(3)))
        for q in range(2)
    ]
    for q, (h, w, siblings) in enumerate([(2, 3, 2), (1, 2, 1)]):
        prefix = np.concatenate([ids(4), [202], [200] * (h * w), [203]]).astype(np.int32)
        image = rng.integers(0, 256, (28 * h, 28 * w, 3), dtype=np.uint8)
        groups.append(
            PromptGroup(
                prefix,
                tuple(ids(3) for _ in range(siblings)),
                tuple(key(9, q, k) for k in range(siblings)),
                image,
            )
        )
    return groups


@pytest.fixture(scope="module")
def turns(small_model, tiny_mesh):
    """Sampled turns of those prompts with advantages, as a rollout would hand them on."""
    graphdef, params = small_model.on(tiny_mesh)
    engine = Engine(graphdef, small_model.config, tiny_mesh, EngineConfig(4, 16, 4, 8), small_model.eos_ids)
    groups = prompts()
    texts = engine.generate(params, groups[:2], 7, SAMPLING) + engine.generate(
        params, groups[2:], 5, SAMPLING
    )
    rng = np.random.default_rng(1)
    result = []
    for q, (group, completions) in enumerate(zip(groups, texts, strict=True)):
        kind = TurnKind.DRAFT if group.image is None else TurnKind.QA
        for k, completion in enumerate(completions):
            turn = Turn(q % 2, k, kind, group.prefix, group.suffixes[k], group.image, completion)
            result.append(WeightedTurn(turn, float(rng.normal())))
    return result


def make_learner(
    small_model,
    mesh,
    rl=RL,
    rows=2,
    max_row_tokens=256,
    length_multiple=16,
    optimizer=OPTIMIZER,
    chunk=16,
    **options,
):
    """A learner, and the parameters to start from."""
    graphdef, params = small_model.on(mesh)
    packing = Packing(small_model.config, max_row_tokens, rows, length_multiple, 1)
    reference = jax.tree.map(lambda x: x * 1.01, params)  # not the policy itself, so that the KL is not zero
    args = (rl, optimizer, packing, 1.0, chunk, 7, Stopwatch())
    return Learner(graphdef, reference, mesh, *args, **options), params


def run(small_model, mesh, turns, steps=3, minibatches=1, **options):
    """All parameters, and metrics, after some updates on the same turns."""
    learner, params = make_learner(small_model, mesh, **options)
    state = learner.init(params)
    parts = [turns] if minibatches == 1 else [[t for t in turns if t.turn.q == q] for q in range(2)]
    for _ in range(steps):
        state, metrics, skipped = learner.update(
            state, [pack_turns(part, learner.packing) for part in parts]
        )
        assert skipped == () and metrics["update/skipped"] == 0
    assert state.step == steps and state.updates == steps * len(parts)
    return jax.device_get(jax.tree.leaves(learner.policy_params(state))), metrics


@pytest.fixture(scope="module")
def expected(small_model, tiny_mesh, turns):
    return run(small_model, tiny_mesh, turns)


def check(result, expected):
    for ours, theirs in zip(result[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    for name in ("loss/total", "kl/mean", "grad/norm", "rollout/logp_gap", "policy/entropy", "update/tokens"):
        np.testing.assert_allclose(result[1][name], expected[1][name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        pytest.param({"max_row_tokens": 1}, 1, id="without sharing the prefix"),
        pytest.param(
            {"rows": 1, "chunk": 3}, -1, id="one row at a time, small chunks, turns in another order"
        ),
        pytest.param({"rows": 5, "length_multiple": 128}, 1, id="five rows at a time, more padding"),
    ],
)
def test_packing_batching_and_padding_change_nothing(small_model, tiny_mesh, turns, expected, options, order):
    check(run(small_model, tiny_mesh, turns[::order], **options), expected)


def test_three_updates_move_the_parameters(small_model, tiny_mesh, expected):
    """Guards the comparisons: what stood still would be equal in any case."""
    before = jax.tree.leaves(small_model.on(tiny_mesh)[1])
    moved = [np.abs(np.asarray(a) - b).max() for a, b in zip(before, expected[0], strict=True)]
    assert max(moved) > 1e-3 and np.median(moved) > 1e-4


def test_four_devices_change_nothing(small_model, turns, expected):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    check(run(small_model, mesh, turns), expected)


def test_sampler_and_trainer_agree_on_the_log_probability(small_model, tiny_mesh, turns):
    _, metrics = run(small_model, tiny_mesh, turns, steps=1)
    # Mean absolute difference over all sampled tokens, images included.
    assert metrics["rollout/logp_gap"] < 1e-4
    assert metrics["policy/ratio"] == pytest.approx(1.0)
    assert metrics["update/tokens"] == sum(len(t.turn.completion.tokens) for t in turns)


def test_several_updates_a_step_take_the_ratio_to_the_sampling_policy(small_model, tiny_mesh, turns):
    fast = dataclasses.replace(OPTIMIZER, learning_rate=0.02)
    _, metrics = run(small_model, tiny_mesh, turns, steps=1, minibatches=2, optimizer=fast)
    assert metrics["update/updates"] == 2
    assert abs(metrics["policy/ratio"] - 1) > 1e-4  # the second update sees that the policy has moved
    assert metrics["rollout/logp_gap"] < 1e-4  # the gap compares sampler and trainer at the sampling policy


def test_rewarded_tokens_become_likelier_and_punished_ones_less(small_model, tiny_mesh, turns):
    learner, params = make_learner(small_model, tiny_mesh, rl=dataclasses.replace(RL, kl_coef=0.0))
    signs = [1.0 if i % 2 else -1.0 for i in range(len(turns))]
    signed = [WeightedTurn(t.turn, sign) for t, sign in zip(turns, signs, strict=True)]
    minibatch = pack_turns(signed, learner.packing)

    def mean_logp(state, sign):
        total = count = 0
        for batch in minibatch.batches:
            logp = np.asarray(learner._logp(state.params, learner._trainable.frozen, batch))
            chosen = batch.loss_mask & (np.sign(batch.advantage) == sign)
            total, count = total + logp[chosen].sum(), count + chosen.sum()
        return total / count

    state = learner.init(params)
    before = mean_logp(state, 1), mean_logp(state, -1)
    for _ in range(5):
        state = learner.update(state, [minibatch]).state
    after = mean_logp(state, 1), mean_logp(state, -1)
    assert after[0] > before[0] + 0.05
    assert after[1] < before[1] - 0.05


def test_a_step_with_nothing_to_train_changes_nothing(small_model, tiny_mesh):
    learner, params = make_learner(small_model, tiny_mesh)
    before = jax.device_get(jax.tree.leaves(params))
    state, metrics, _ = learner.update(learner.init(params), [pack_turns([], learner.packing)])
    assert metrics == {"update/tokens": 0, "update/updates": 0, "update/skipped": 0}
    assert (state.step, state.updates) == (1, 0)
    for a, b in zip(before, jax.device_get(jax.tree.leaves(state.params)), strict=True):
        np.testing.assert_array_equal(a, b)


