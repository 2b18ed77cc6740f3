"""The whole step with real Chromium: on one device and on four, and when pages, memories or answers lack."""

import dataclasses

import jax
import numpy as np
import psutil
import pytest

from memocr_jax.agent.system import build_system
from memocr_jax.config import EngineConfig, MeshConfig, validate
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.types import TurnKind
from memocr_jax.data.loader import load_examples
from memocr_jax.rl.step import rollout, update, weighted_turns
from memocr_jax.rl.step_metrics import rollout_metrics
from memocr_jax.rl.update import Learner
from render.types import PageStatus

Q, G = 2, 4


@pytest.fixture(scope="module")
def config(tiny_config):
    """Two questions of two chunks, four memories each."""
    c = tiny_config
    synthetic = dataclasses.replace(c.data.synthetic, questions=8, facts=3, distractors=2, filler=0, chunks=2)
    return dataclasses.replace(
        c,
        data=dataclasses.replace(c.data, synthetic=synthetic, chunk_tokens=96),
        agent=dataclasses.replace(c.agent, draft_max_new_tokens=24, read_max_new_tokens=8),
        rl=dataclasses.replace(c.rl, group_size=G, questions_per_step=Q, minibatch_questions=1),
        train=dataclasses.replace(c.train, micro_batch_rows=4, length_multiple=512),
        engine=EngineConfig(groups=8, length_multiple=256, decode_segment=8),
        # Random weights earn nothing, so gradients are rounding; a small eps would blow that up into steps of
        # the learning rate's size. Learning on four devices is compared in test_update.py.
        optimizer=dataclasses.replace(c.optimizer, eps=1e-2),
    )


class Tampering:
    """The real renderer, given other texts for some memories."""

    def __init__(self, renderer, texts):
        self._renderer, self._texts, self._count = renderer, texts, 0

    def submit(self, memory):
        self._count += 1
        return self._renderer.submit(self._texts.get(self._count - 1, memory))


class Killing:
    """The real renderer, all of whose browsers are killed once pages are under way."""

    def __init__(self, renderer, page):
        self._renderer, self._at, self.killed = renderer, page, 0

    def submit(self, memory):
        future = self._renderer.submit(memory)
        self._at -= 1
        if self._at == 0:
            for process in psutil.Process().children(recursive=True):
                if "chrom" in process.name():
                    process.kill()
                    self.killed += 1
        return future


def run_step(config, texts=None, without_answer=(), kill_at=0):
    validate(config)
    stopwatch = Stopwatch()
    system = build_system(config)
    examples = load_examples(config.data, system.tokenizer, "train")
    batch = [
        dataclasses.replace(examples[i], answers=()) if i in without_answer else examples[i] for i in range(Q)
    ]
    initial = system.initial_params()
    learner = Learner(config, system.model, system.mesh, initial, stopwatch)
    with system.agent(stopwatch) as agent:
        if texts:
            agent = dataclasses.replace(agent, renderer=Tampering(agent.renderer, texts))
        if kill_at:
            killing = Killing(agent.renderer, kill_at)
            agent = dataclasses.replace(agent, renderer=killing)
        state = learner.init(initial)
        with jax.transfer_guard("disallow"):
            policy = system.sampler_params(learner.policy_params(state))
            result = rollout(agent, policy, batch, config.rl, config.sampling, 1)
            updated, _ = update(learner, state, result, config.rl.minibatch_questions)
        if kill_at:
            assert killing.killed, "no browser was there to be killed"
    assert set(stopwatch.take()) == {"draft", "render_exposed", "read", "update"}
    params = [np.asarray(x) for x in jax.tree.leaves(updated.state.params)]
    return result, updated.metrics, params, updated.state


@pytest.fixture(scope="module")
def one_device(config):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        # Every browser dies in the middle of the step, which four devices below do without a death.
        return run_step(config, kill_at=3)


def test_every_question_is_drafted_rendered_and_read_three_ways(config, one_device):
    result, learned, _, state = one_device
    assert [(m.q, m.g) for m in result.memories] == [(q, g) for q in range(Q) for g in range(G)]
    for memory in result.memories:
        assert [turn.chunk for turn in memory.drafts] == list(range(len(result.examples[memory.q].chunks)))
        assert memory.page.status in (PageStatus.OK, PageStatus.MISSING_GLYPHS)
    full = [r for r in result.readings if r.turn.kind != TurnKind.QA_LOWRES]
    low = [r for r in result.readings if r.turn.kind == TurnKind.QA_LOWRES]
    assert len(low) == Q * G and all(r.view_tokens <= config.agent.budget_tokens // 16 for r in low)
    assert all(low_view.view_tokens < r.view_tokens <= 64 for low_view in low for r in full)
    # The group shares its prefix at every chunk, and a page's two readings share theirs.
    for q in range(Q):
        for chunk in range(2):
            prefixes = {m.drafts[chunk].prefix.tobytes() for m in result.memories if m.q == q}
            assert len(prefixes) == 1
    assert result.scores.scored.shape == (Q, G, 3)
    turns = weighted_turns(result)
    assert learned["update/tokens"] == sum(len(t.turn.completion.tokens) for t in turns)
    assert learned["rollout/logp_gap"] < 1e-4
    assert (state.step, state.updates) == (1, Q)  # mini-batches of one question


def test_four_devices_do_the_same(config, one_device):
    mesh = MeshConfig(data=2, fsdp=2, tensor=1)
    result, learned, params, _ = run_step(dataclasses.replace(config, mesh=mesh))
    expected, expected_update, expected_params, _ = one_device
    for ours, theirs in zip(result.memories, expected.memories, strict=True):
        assert ours.text == theirs.text
        assert ours.page.content_hash == theirs.page.content_hash
    np.testing.assert_array_equal(result.scores.rewards, expected.scores.rewards)
    for name, value in expected_update.items():
        if value is None:
            assert learned[name] is None, name
        else:
            np.testing.assert_allclose(learned[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for ours, theirs in zip(params, expected_params, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_cannot_be_read_is_counted_weighs_nothing_and_the_step_goes_on(config):
    too_long = "word " * 50_000
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        # Memories are ordered by (q, g): question 0 has samples 0..3, question 1 samples 4..7.
        result, learned, params, _ = run_step(
            config, texts={0: "", 1: " \n\t ", 2: too_long}, without_answer={1}
        )
    statuses = [memory.page.status for memory in result.memories[:3]]
    assert statuses == [PageStatus.EMPTY, PageStatus.EMPTY, PageStatus.TOO_LARGE]
    metrics = rollout_metrics(result).as_dict()
    assert (metrics["render/empty"], metrics["render/failed"]) == (2, 1)
    assert metrics["question/without_answer"] == 1
    # Of question 0 only sample 3 was read; question 1 was read, but has nothing to be scored with.
    scored = result.scores.scored
    assert not scored[0, :3].any() and scored[0, 3, :2].all() and not scored[1].any()
    assert metrics["scored/std"] == metrics["scored/aug_m"] == 1
    assert (result.draft_advantage[scored.any(-1) == False] == 0).all()  # noqa: E712
    trained = {(t.turn.q, t.turn.g) for t in weighted_turns(result)}
    assert trained == {(0, 3)}
    assert learned["update/updates"] == 1  # the mini-batch of question 1 is empty
    assert all(np.isfinite(x).all() for x in params)


def test_nothing_to_read_at_all(config):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        result, learned, _, state = run_step(config, texts=dict.fromkeys(range(Q * G), ""))
    assert not result.readings and not result.scores.scored.any()
    assert learned == {"update/tokens": 0, "update/updates": 0, "update/skipped": 0}
    assert state.step == 1
    metrics = rollout_metrics(result).as_dict()
    assert metrics["reward/std"] is None  # a mean over nothing is not zero
    assert metrics["render/empty"] == Q * G
    assert metrics["memory/gold_in_heading"] == 0


def test_the_share_of_memories_with_the_gold_evidence_in_the_heading(config):
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        result, *_ = run_step(config, without_answer={1})
    gold = [" ".join(example.evidence) for example in result.examples]
    texts = [f"# {gold[m.q]}" if m.g < 3 - m.q else gold[m.q] for m in result.memories]
    memories = [dataclasses.replace(m, text=t) for m, t in zip(result.memories, texts, strict=True)]
    counted = dataclasses.replace(result, memories=memories)
    assert rollout_metrics(counted).as_dict()["memory/gold_in_heading"] == (3 + 2) / (Q * G)
    nothing = [dataclasses.replace(example, evidence=()) for example in result.examples]
    counted = dataclasses.replace(counted, examples=nothing)
    assert rollout_metrics(counted).as_dict()["memory/gold_in_heading"] is None
