"""The laptop proof has nothing up its sleeve: one GRPO step of configs/nano.yaml, looked at from outside.

Each test is a sentence of docs/nano. (That the warm-up teaches no fact of the evaluation, and no heading that
knows the question, is tested in tests/sft.)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from memocr_jax.agent.answers import boxed_answer
from memocr_jax.agent.system import build_system
from memocr_jax.config import load_config
from memocr_jax.core.types import READ_KINDS, TurnKind
from memocr_jax.data.loader import load_examples
from memocr_jax.rl.step import rollout, weighted_turns
from render import RenderPool, RenderSettings
from render.views import fit

ROOT = Path(__file__).parents[2]
Q, G = 2, 2


@pytest.fixture(scope="module")
def nano():
    """The configuration with paths that work from any directory, two questions of two memories."""
    c = load_config(ROOT / "configs/nano.yaml")

    def at_root(section):
        return dataclasses.replace(section, path=str(ROOT / section.path))

    return dataclasses.replace(
        c,
        model=at_root(c.model),
        tokenizer=at_root(c.tokenizer),
        prompts=at_root(c.prompts),
        rl=dataclasses.replace(c.rl, group_size=G, questions_per_step=Q, minibatch_questions=Q),
        engine=dataclasses.replace(c.engine, groups=8),
    )


@pytest.fixture(scope="module")
def step(nano):
    """(system, examples, what was sampled)"""
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        system = build_system(nano)
        examples = load_examples(nano.data, system.tokenizer, "train")
        batch = [examples[0], examples[1]]
        with system.agent() as agent:
            params = system.sampler_params(system.initial_params())
            return system, batch, rollout(agent, params, batch, nano.rl, nano.sampling, 1)


def test_pages_are_chromiums(step):
    _, _, result = step
    # Another browser, started by nothing but the theme's name, draws the same pixels.
    settings = RenderSettings(theme="nano", width_px=112, margin_px=0, shrink=False, workers=1, cache_mb=0)
    with RenderPool(settings) as pool:
        pages = pool.render([memory.text for memory in result.memories])
    assert len(pages) == Q * G
    for memory, page in zip(result.memories, pages, strict=True):
        np.testing.assert_array_equal(memory.page.pixels, page.pixels)


def test_a_budget_is_the_page_shrunk_by_the_function_that_everything_uses(step):
    _, _, result = step
    pages = {(memory.q, memory.g): memory.page.pixels for memory in result.memories}
    budgets = {TurnKind.QA: 32, TurnKind.GAP_FILL: 32, TurnKind.QA_LOWRES: 2}
    assert {reading.turn.kind for reading in result.readings} == set(budgets)
    for turn in (reading.turn for reading in result.readings):
        np.testing.assert_array_equal(turn.image, fit(pages[turn.q, turn.g], budgets[turn.kind]))


def test_the_drafter_is_told_the_question_and_nothing_else_about_what_matters(step):
    system, batch, result = step
    for memory in result.memories:
        (draft,) = memory.drafts
        example = batch[memory.q]
        article = system.tokenizer.decode(example.chunks[0])
        asked = system.tokenizer.decode(np.concatenate([draft.prefix, draft.suffix]))
        words = asked.replace(article.strip(), "", 1).split()
        assert example.question in " ".join(words)
        left = " ".join(words).replace(example.question, "", 1)
        assert left.split() == ["system", "user", "write", "about", "none", "assistant"]


def test_the_reward_is_the_correctness_of_the_answer_alone(step):
    _, _, result = step
    for reading in result.readings:
        turn = reading.turn
        reward = result.scores.rewards[turn.q, turn.g, READ_KINDS.index(turn.kind)]
        said = boxed_answer(reading.text)
        assert reward == float(said is not None and said.strip() in reading.expected)
    # What a draft is trained with are these rewards less their mean in the group, weighted 1 : 0.7 : 0.3.
    expected = (
        (result.scores.rewards - result.scores.rewards.mean(axis=1, keepdims=True)) @ [1, 0.7, 0.3]
    ) / 2
    drafts = [t for t in weighted_turns(result) if t.turn.kind is TurnKind.DRAFT]
    assert len(weighted_turns(result)) == len(drafts) == Q * G, "the reader is not trained"
    for turn, advantage in drafts:
        assert advantage == pytest.approx(expected[turn.q, turn.g])


def test_no_fact_of_the_evaluation_occurs_in_training(nano, step):
    tokenizer = step[0].tokenizer

    def facts(split, number):
        examples = load_examples(nano.data, tokenizer, split)
        found = set()
        for example in (examples[i] for i in range(number)):
            words = tokenizer.decode(example.chunks[0]).replace(".", " ").split()
            found |= set(zip(words[::2], words[1::2], strict=True))
        return found

    held_out, trained = facts("validation", 384), facts("train", 3000)
    assert len(held_out) > 250 and len(trained) > 800
    assert not held_out & trained
