"""The learner: what is computed does not depend on how it is packed, batched or spread; and it learns."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from memocr_jax.config import (
    AgentConfig,
    Config,
    EngineConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    SamplingConfig,
    TrainConfig,
)
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.rng import row_key
from memocr_jax.core.sharding import make_mesh, put_batch, put_scalar
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.engine import Engine, PromptGroup
from memocr_jax.rl.loss import Denominators
from memocr_jax.rl.pack import Shape, WeightedTurn, pack_turns
from memocr_jax.rl.update import Learner
from memocr_jax.runs.checkpoint import Checkpoints, Meta

RL = RLConfig(kl_coef=0.1)
# A large eps keeps the update nearly linear in the gradient: Adam would blow rounding of tiny gradients up.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, eps=1e-2)
SAMPLING = SamplingConfig(top_p=1.0)
LORA = LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "gate_proj"))


def prompts():
    """Two groups of three drafts, and two pages, one read twice."""
    rng = np.random.default_rng(0)

    def ids(n):
        return rng.integers(8, 200, n).astype(np.int32)

    def key(*labels):
        return row_key(0, "t", *labels)

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


MADE = {}


def make_learner(small_model, mesh, **options):
    """A learner, and the parameters to start from; made once, so that nothing is compiled twice."""
    key = mesh, repr(sorted(options.items()))
    if key not in MADE:
        MADE[key] = new_learner(small_model, mesh, **options)
    return MADE[key], small_model.on(mesh)[1]


def new_learner(
    small_model,
    mesh,
    rl=RL,
    rows=2,
    max_row_tokens=256,
    length_multiple=16,
    optimizer=OPTIMIZER,
    chunk=16,
    lora=LORA,
    **train,
):
    _, params = small_model.on(mesh)
    config = Config(
        model=ModelConfig(dtype="float32"),
        agent=AgentConfig(draft_max_new_tokens=7, read_max_new_tokens=5),
        engine=EngineConfig(window_multiple=1),
        rl=rl,
        optimizer=optimizer,
        lora=lora,
        train=TrainConfig(
            micro_batch_rows=rows,
            max_row_tokens=max_row_tokens,
            length_multiple=length_multiple,
            logp_chunk_tokens=chunk,
            **train,
        ),
    )
    reference = jax.tree.map(lambda x: x * 1.01, params)  # not the policy itself, so that the KL is not zero
    return Learner(config, small_model.config, mesh, reference, Stopwatch())


def run(small_model, mesh, turns, steps=3, minibatches=1, **options):
    """All parameters, and metrics, after some updates on the same turns."""
    learner, params = make_learner(small_model, mesh, **options)
    state = learner.init(params)
    parts = [turns] if minibatches == 1 else [[t for t in turns if t.turn.q == q] for q in range(2)]
    for _ in range(steps):
        state, metrics, skipped = learner.update(state, [pack_turns(part, learner.packing) for part in parts])
        assert skipped == () and metrics["update/skipped"] == 0
    assert state.step == steps and state.updates == steps * len(parts)
    return jax.device_get(jax.tree.leaves(learner.policy_params(state))), metrics


@pytest.fixture(scope="module")
def expected(small_model, tiny_mesh, turns):
    return run(small_model, tiny_mesh, turns)


def check(result, expected):
    for ours, theirs in zip(result[0], expected[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
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
    learner, params = make_learner(small_model, mesh)
    # Gradients are spread as their parameters are: left to itself the compiler keeps sums whole everywhere.
    for gradient, param in zip(*map(jax.tree.leaves, (learner._zeros(params)[0], params)), strict=True):
        assert gradient.sharding == param.sharding


def test_sampler_and_trainer_agree_on_the_log_probability(small_model, tiny_mesh, turns):
    _, metrics = run(small_model, tiny_mesh, turns, steps=1)
    # Mean absolute difference over all sampled tokens, images included.
    assert metrics["rollout/logp_gap"] < 1e-4
    assert metrics["policy/ratio"] == pytest.approx(1.0)
    assert metrics["update/tokens"] == sum(len(t.turn.completion.tokens) for t in turns)


def test_several_updates_a_step_take_the_ratio_to_the_sampling_policy(small_model, tiny_mesh, turns):
    fast = dataclasses.replace(OPTIMIZER, learning_rate=0.02)
    drafts = [t for t in turns if t.turn.image is None]
    _, metrics = run(small_model, tiny_mesh, drafts, steps=1, minibatches=2, optimizer=fast)
    assert metrics["update/updates"] == 2
    assert abs(metrics["policy/ratio"] - 1) > 1e-4  # the second update sees that the policy has moved
    assert metrics["rollout/logp_gap"] < 1e-4  # the gap compares sampler and trainer at the sampling policy


def test_a_step_with_nothing_to_train_changes_nothing(small_model, tiny_mesh):
    learner, params = make_learner(small_model, tiny_mesh)
    before = jax.device_get(jax.tree.leaves(params))
    state, metrics, _ = learner.update(learner.init(params), [pack_turns([], learner.packing)])
    assert metrics == {"update/tokens": 0, "update/updates": 0, "update/skipped": 0}
    assert (state.step, state.updates) == (1, 0)
    for a, b in zip(before, jax.device_get(jax.tree.leaves(state.params)), strict=True):
        np.testing.assert_array_equal(a, b)


# What follows is about the update and not about the model: short turns of text, made by hand.


@pytest.fixture(scope="module")
def texts():
    """Two questions with a group of two each; the sampler's log-probabilities are far from the model's."""
    rng = np.random.default_rng(5)

    def ids(n):
        return rng.integers(8, 200, n).astype(np.int32)

    result = []
    for q in range(2):
        prefix = ids(3)
        for g in range(2):
            n = 2 + g
            completion = Completion(ids(n), -rng.gamma(7.0, 1.0, n).astype(np.float32), Stop.EOS)
            turn = Turn(q, g, TurnKind.DRAFT, prefix, ids(2), None, completion)
            result.append(WeightedTurn(turn, float(rng.normal())))
    return result


def test_rewarded_tokens_become_likelier_and_punished_ones_less(small_model, tiny_mesh, texts):
    learner, params = make_learner(small_model, tiny_mesh, rl=dataclasses.replace(RL, kl_coef=0.0))
    signs = [1.0 if i % 2 else -1.0 for i in range(len(texts))]
    signed = [WeightedTurn(t.turn, sign) for t, sign in zip(texts, signs, strict=True)]
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


def minibatches(learner, texts):
    return [pack_turns([t for t in texts if t.turn.q == q], learner.packing) for q in range(2)]


def values(tree):
    return jax.device_get(jax.tree.leaves(tree))


def poisoned(minibatch):
    """With an advantage that is not a number."""
    (batch,) = minibatch.batches
    return dataclasses.replace(minibatch, batches=[batch._replace(advantage=batch.advantage * np.nan)])


def test_a_gradient_that_is_not_finite_skips_its_update_alone(small_model, tiny_mesh, texts):
    learner, params = make_learner(small_model, tiny_mesh)
    one, other = minibatches(learner, texts)
    before = values(params)

    state, metrics, skipped = learner.update(learner.init(params), [poisoned(one), poisoned(other)])
    assert skipped == (0, 1) and (state.step, state.updates, state.skipped_in_row) == (1, 0, 2)
    assert metrics == {"update/tokens": 0, "update/updates": 0, "update/skipped": 2}
    for ours, theirs in zip(values(state.params), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all((x == 0).all() for x in values(state.opt_state))  # moments and count as at the start

    # The other mini-batch learns as if it were alone; metrics are of it alone. Indices count the empty one.
    empty = pack_turns([], learner.packing)
    state, metrics, skipped = learner.update(state, [empty, poisoned(one), other])
    assert skipped == (1,) and (state.step, state.updates, state.skipped_in_row) == (2, 1, 0)
    expected, expected_metrics, _ = learner.update(learner.init(small_model.on(tiny_mesh)[1]), [other])
    for ours, theirs in zip(values(state.params), values(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert metrics.pop("update/skipped") == 1 and expected_metrics.pop("update/skipped") == 0
    for name, value in expected_metrics.items():
        assert metrics[name] == (value and pytest.approx(value, rel=1e-4, abs=1e-6)), name

    state, _, skipped = learner.update(state, [other, poisoned(one)])
    assert skipped == (1,) and state.skipped_in_row == 1
    state, _, skipped = learner.update(state, [poisoned(one), other])
    assert skipped == (0,) and state.skipped_in_row == 0


def logp_of(learner, state, minibatch):
    """f64 log-probabilities of the sampled tokens, and those of the sampler."""
    (batch,) = minibatch.batches
    logp = np.asarray(learner._logp(state.params, learner._trainable.frozen, batch), np.float64)
    return logp[batch.loss_mask], batch.sampler_logp[batch.loss_mask].astype(np.float64)


def test_a_sampler_of_another_policy_is_weighed_and_reported(small_model, tiny_mesh, texts):
    """With rl.staleness old is the policy that the update starts from; importance weights correct the gap."""
    rl = dataclasses.replace(RL, kl_coef=0.0, tis_cap=1.5)
    learner, params = make_learner(small_model, tiny_mesh, rl=rl)
    both = minibatches(learner, texts)
    state = learner.init(params)
    logp, sampler = map(np.concatenate, zip(*(logp_of(learner, state, m) for m in both), strict=True))
    weight = np.exp(logp - sampler)
    assert 0.1 < (weight > 1.5).mean() < 0.9
    _, metrics, _ = learner.update(state, both)
    assert metrics["tis/weight"] == pytest.approx(np.minimum(weight, 1.5).mean(), rel=1e-4)
    assert metrics["tis/truncated_share"] == pytest.approx((weight > 1.5).mean())
    assert metrics["rollout/logp_gap"] == pytest.approx(np.abs(logp - sampler).mean(), rel=1e-4)
    assert metrics["policy/ratio"] == pytest.approx(1, abs=0.05)  # the second update sees the first
    assert metrics["kl/mean"] is None and metrics["loss/kl"] is None  # not 0: nothing was measured


def test_the_ratio_can_be_taken_to_the_sampler(small_model, tiny_mesh, texts):
    rl = dataclasses.replace(RL, kl_coef=0.0, old_logp="sampler", ratio="sequence")
    learner, params = make_learner(small_model, tiny_mesh, rl=rl)
    both = minibatches(learner, texts)
    state = learner.init(params)
    start = [logp_of(learner, state, m) for m in both]
    copy = jax.tree.map(lambda x: x.copy(), state.params)
    one = learner.update(learner.init(copy), both[:1]).state
    moved = start[0], logp_of(learner, one, both[1])
    # Turns have 2 and 3 tokens; a turn's ratio is the geometric mean of its tokens'.
    ratios = [np.exp(d.mean()) for logp, s in moved for d in ((logp - s)[:2], (logp - s)[2:])]
    expected = np.average(ratios, weights=[2, 3, 2, 3])
    _, metrics, _ = learner.update(state, both)
    assert metrics["policy/ratio"] == pytest.approx(expected, rel=1e-3)
    # The gap is measured where the policy is still the one that the step began with: in the first update.
    logp, sampler = start[0]
    assert metrics["rollout/logp_gap"] == pytest.approx(np.abs(logp - sampler).mean(), rel=1e-4)
    assert metrics["tis/weight"] is None


def gradient(learner, params, turns):
    """Gradient of the first update, by path."""
    minibatch = pack_turns(turns, learner.packing)
    split = learner._trainable
    trained, frozen = (split.fresh(params), params) if split.kind == "lora" else split._split(params)
    counts = (put_scalar(n, learner.mesh) for n in (minibatch.tokens, minibatch.sequences, 7))
    denominators, grads = Denominators(*counts), learner._zeros(trained)
    for batch in minibatch.batches:
        batch = put_batch(batch, learner.mesh)
        ref = learner._ref_logp(batch)
        grads = learner._accumulate(
            trained,
            frozen,
            batch,
            None,
            ref,
            denominators,
            put_scalar(1, learner.mesh),
            grads=grads[0],
            sums=grads[1],
        )
    return {path: np.asarray(x.get_value()) for path, x in nnx.to_flat_state(grads[0])}, grads[1]["loss"]


def check_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_allclose(value, theirs[path], rtol=0, atol=1e-5 * np.abs(theirs[path]).max())


@pytest.mark.parametrize("options", [{}, {"row_layout": "aligned"}], ids=["packed", "aligned"])
def test_sharing_the_prefix_changes_no_gradient(small_model, tiny_mesh, turns, options):
    """Loss and every gradient within 1e-5 relative: with images, siblings of other lengths, a group of 1."""
    images = [t.turn.image is not None for t in turns]
    lengths = {len(t.turn.suffix) + len(t.turn.completion.tokens) for t in turns}
    assert any(images) and not all(images) and len(lengths) > 2
    shared, params = make_learner(small_model, tiny_mesh, **options)
    plain, _ = make_learner(small_model, tiny_mesh, max_row_tokens=1)
    assert sum(b.segments.max() for b in pack_turns(turns, shared.packing).batches) > len(turns) // 2
    assert all(b.segments.max() == 1 for b in pack_turns(turns, plain.packing).batches)
    ours, loss = gradient(shared, params, turns)
    theirs, expected = gradient(plain, params, turns)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    check_gradients(ours, theirs)


def test_remat_says_what_layers_keep_for_the_backward_pass(small_model, tiny_mesh, turns):
    """Less is kept, more is computed again, and the gradient is the same."""
    kept, found = {}, {}
    for remat in ("none", "dots", "full"):
        learner, params = make_learner(small_model, tiny_mesh, remat=remat)
        lowered = learner.lower(Shape(windows=1, length=256, sampled=64))["gradient"]
        kept[remat] = lowered.compile().memory_analysis().temp_size_in_bytes
        found[remat], _ = gradient(learner, params, turns)
    assert kept["none"] > 1.1 * kept["dots"] and kept["dots"] > 1.1 * kept["full"], kept
    for remat in ("none", "dots"):
        check_gradients(found[remat], found["full"])


def test_a_frozen_vision_tower_has_neither_gradients_nor_moments(small_model, tiny_mesh, turns):
    learner, params = make_learner(small_model, tiny_mesh, trainable="decoder")
    turns = [t for t in turns if t.turn.image is not None]
    every, _ = make_learner(small_model, tiny_mesh)
    ours, _ = gradient(learner, params, turns)
    theirs, _ = gradient(every, params, turns)
    assert {path[0] for path in theirs} == {"visual", "language_model", "lm_head"}
    check_gradients(ours, {path: x for path, x in theirs.items() if path[0] != "visual"})

    state = learner.init(params)
    visual = [x.size for path, x in nnx.to_flat_state(params) if path[0] == "visual"]
    total = sum(x.size for x in jax.tree.leaves(params)) - sum(visual)
    assert visual and sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * total
    state, metrics, _ = learner.update(state, [pack_turns(turns, learner.packing)])
    assert metrics["kl/mean"] > 1e-4  # the reference's decoder is another
    assert jax.tree.structure(learner.policy_params(state)) == jax.tree.structure(params)
    policy = dict(nnx.to_flat_state(learner.policy_params(state)))
    for path, variable in nnx.to_flat_state(small_model.on(tiny_mesh)[1]):
        # The learner was made with 1.01 times these: its tower is the frozen one.
        frozen = np.array_equal(policy[path].get_value(), variable.get_value() * 1.01)
        assert frozen == (path[0] == "visual"), path


def test_adapters_learn_with_the_base_as_reference(small_model, tiny_mesh, texts, tmp_path):
    learner, params = make_learner(small_model, tiny_mesh, trainable="lora")
    every, _ = make_learner(small_model, tiny_mesh)
    base = learner._trainable.frozen  # what the learner was made with; `params` plays no part

    # While B is 0, A has no gradient and B has alpha / r times that of W, times A^T.
    ours, _ = gradient(learner, base, texts)
    theirs, _ = gradient(every, base, texts)
    fresh = dict(nnx.to_flat_state(learner._trainable.fresh(base)))
    assert len(ours) == 4
    for path, value in ours.items():
        of_weight = theirs[(*path[:-2], "weight")]
        a = np.asarray(fresh[(*path[:-1], "A")].get_value(), np.float64)
        expected = 3.0 * of_weight @ a.swapaxes(-1, -2) if path[-1] == "B" else 0 * a
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    state = learner.init(params)
    adapters = sum(x.size for x in jax.tree.leaves(state.params))
    assert adapters < 0.01 * sum(x.size for x in jax.tree.leaves(base))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * adapters
    both = minibatches(learner, texts)
    before = values(base)
    state, first, _ = learner.update(state, both[:1])
    assert abs(first["kl/mean"]) < 1e-6  # the policy is still its reference
    state, second, _ = learner.update(state, both[:1])
    assert second["kl/mean"] > 1e-6
    for x, y in zip(values(learner._trainable.frozen), before, strict=True):
        np.testing.assert_array_equal(x, y)

    # What samples has the adapters merged into the model that knows none.
    policy = learner.policy_params(state)
    assert jax.tree.structure(policy) == jax.tree.structure(params)
    logp, _ = logp_of(learner, state, both[0])
    merged, _ = logp_of(every, every.init(policy), both[0])
    np.testing.assert_allclose(merged, logp, atol=1e-4)

    # A checkpoint holds the policy for whoever reads it, and the adapters for whoever goes on.
    items = learner.checkpoint_items(state)
    assert set(items) == {"params", "adapters", "opt_state"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Meta(2, 2, small_model.config.to_dict()), items)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = learner.restored(checkpoints.restore(2, **learner.abstract_items()), 2, 2)
    for x, y in zip(values(restored.params), values(state.params), strict=True):
        np.testing.assert_array_equal(x, y)
    went_on = learner.update(state, both).state
    resumed = learner.update(restored, both).state
    for x, y in zip(values(resumed.params), values(went_on.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_nothing_is_compiled_after_the_first_steps(small_model, tiny_mesh, turns):
    """20 steps of turns of varying number and length, where a row has one length (train.length_multiple)."""
    learner, params = make_learner(
        small_model, tiny_mesh, rl=RLConfig(kl_coef=0.0), max_row_tokens=128, length_multiple=128
    )
    state = learner.init(params)
    rng = np.random.default_rng(5)

    def shortened(t):
        n = int(rng.integers(1, len(t.turn.completion.tokens) + 1))
        c = t.turn.completion
        c = dataclasses.replace(c, tokens=c.tokens[:n], sampler_logp=c.sampler_logp[:n])
        suffix = rng.integers(8, 200, int(rng.integers(1, 9))).astype(np.int32)
        return WeightedTurn(dataclasses.replace(t.turn, completion=c, suffix=suffix), t.advantage)

    def step(state, part):
        return learner.update(state, [pack_turns([shortened(t) for t in part], learner.packing)]).state

    state = step(state, turns)
    compiled = learner.executables
    for _ in range(20):
        images = [t for t in turns if t.turn.image is not None]
        texts = [t for t in turns if t.turn.image is None]
        part = [texts[i] for i in rng.choice(len(texts), int(rng.integers(1, 7)), replace=False)]
        state = step(state, part + images[: int(rng.integers(0, 4))])
    assert state.step == 21 and compiled >= 3
    assert learner.executables == compiled
