"""Every method from one draft: what the model is given, what is asked once, and what is counted as wrong.

The engine writes down what it is asked and answers with what it saw; the renderer draws without a browser.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from flax import nnx

from memocr_jax.config import EvalConfig
from memocr_jax.core.types import Completion, Stop
from memocr_jax.evaluation.methods import (
    KEYS,
    answer_questions,
    evaluate_examples,
    first_tokens,
    flat_html,
    longest_document,
)
from render.markdown import to_html

NOTHING = nnx.State({})
"""The parameters of an engine that needs none."""
METHODS = ("visual memory", "visual without layout", "text memory", "raw history")


def settings(**changes):
    return EvalConfig(**{"methods": METHODS, "budgets": (64, 50, 8), "samples": 2, **changes})


def test_one_draft_serves_every_method_and_budget(agent, tokenizer, examples):
    one = agent()
    results = evaluate_examples(one, NOTHING, examples(tokenizer), settings(), "nq", "10k")
    # 3 questions x 2 chunks, whatever methods and budgets there are.
    assert len(one.engine.drafts()) == 6
    assert len(results) == 3 * 2 * (3 * 3 + 1)
    assert all(tuple(result) == KEYS for result in results)
    order = [(r["id"], r["sample"], METHODS.index(r["method"]), -(r["budget"] or 0)) for r in results]
    assert order == sorted(order), "by question, sample, method, budget"
    assert {(r["dataset"], r["length"]) for r in results} == {("nq", "10k")}
    for r in results:
        visual = r["method"].startswith("visual")
        assert (r["image_tokens"] is not None) == (r["page_hash"] is not None) == visual
        assert not visual or r["image_tokens"] <= r["budget"]
        assert (r["budget"] is None) == (r["method"] == "raw history")


def test_what_looks_the_same_is_read_once(agent, tokenizer, examples):
    # A page of 50 tokens is the same at 64 and at 50.
    one = agent()
    results = evaluate_examples(one, NOTHING, examples(tokenizer, 1), settings(methods=METHODS[:1]))
    assert len(one.engine.reads()) == 2 * 2
    by_budget = {(r["sample"], r["budget"]): r["prediction"] for r in results}
    assert by_budget[0, 64] == by_budget[0, 50] != by_budget[0, 8]
    assert [r["image_tokens"] for r in results[:3]] == [50, 50, 8]


def test_an_answer_does_not_depend_on_what_else_is_evaluated(agent, tokenizer, examples):
    whole = evaluate_examples(agent(), NOTHING, examples(tokenizer), settings())
    for changes in (
        {"budgets": (8,)},
        {"methods": METHODS[2:3]},
        {"methods": METHODS[1:2], "budgets": (50,)},
        {"methods": METHODS[3:]},
        {"wave_questions": 1},
    ):
        part = evaluate_examples(agent(), NOTHING, examples(tokenizer)[::-1], settings(**changes))
        assert part
        for result in part:
            assert result in whole, f"another draw with {changes}"
    seeds = {r["prediction"] for r in whole if r["method"] == "visual memory" and r["budget"] == 64}
    assert len(seeds) == 6, "samples and questions draw differently"


def test_text_memory_is_cut_to_its_budget(agent, tokenizer, examples):
    one = agent()
    (answered,) = answer_questions(
        one, NOTHING, examples(tokenizer, 1), settings(methods=METHODS[2:3], samples=1, budgets=(200, 50, 8))
    )
    assert [a.shown_tokens for a in answered.answers] == [len(tokenizer.encode(answered.memories[0])), 50, 8]
    assert [a.status for a in answered.answers] == ["OK", "TRUNCATED", "TRUNCATED"]
    texts = [tokenizer.decode(group.prefix) for group in one.engine.reads()]
    assert answered.memories[0].strip() in texts[0] and texts[0].startswith(texts[1][:30])
    assert "word" not in texts[2]
    assert all(group.image is None for group in one.engine.reads())


@pytest.mark.parametrize("text", ["# A\n\nnaïve façade 漢字 🙂🙂🙂 end", "   ", "a", "🙂" * 30])
def test_the_first_tokens_are_never_more_and_end_with_a_whole_character(tokenizer, text):
    before = 0
    for budget in range(1, 40):
        start = first_tokens(tokenizer, text, budget)
        assert text.startswith(start) and len(tokenizer.encode(start)) <= budget
        assert len(start) >= before
        before = len(start)
    assert first_tokens(tokenizer, text, 1000) == text


def test_raw_history_has_the_whole_document_once_for_all_samples(agent, tokenizer, examples):
    one = agent()
    made = examples(tokenizer, 3)
    results = answer_questions(one, NOTHING, made, settings(methods=METHODS[3:]))
    assert not one.engine.drafts() and not one.renderer.seen
    groups = one.engine.reads()
    assert len(groups) == 3 and all(len(group.suffixes) == 2 for group in groups)
    document = np.concatenate(made[0].chunks)
    place = groups[0].prefix.tolist()
    assert any(place[i : i + len(document)] == document.tolist() for i in range(len(place)))
    assert {a.shown_tokens for answered in results for a in answered.answers} == {len(document)}
    assert {a.status for answered in results for a in answered.answers} == {"OK"}
    assert [a.text.split()[-1] for a in results[0].answers] != ["", ""]


def test_a_document_that_is_too_long_loses_its_middle(agent, tokenizer, examples):
    one = agent()
    made = examples(tokenizer, 1, words=700)
    document = np.concatenate(made[0].chunks)
    longest = longest_document(one)
    assert len(document) > longest > 2000
    (answered,) = answer_questions(one, NOTHING, made, settings(methods=METHODS[3:], samples=1))
    (answer,) = answered.answers
    assert (answer.status, answer.shown_tokens) == ("TRUNCATED", longest)
    (group,) = one.engine.reads()
    text = group.prefix.tolist()
    start = text.index(document[0])
    assert text[start : start + 100] == document[:100].tolist()
    assert text[start + longest - 100 : start + longest] == document[-100:].tolist()
    assert len(group.prefix) + len(group.suffixes[0]) + one.config.read_max_new_tokens <= 6000
    (shorter,) = answer_questions(
        agent(), NOTHING, made, settings(methods=METHODS[3:], samples=1, raw_max_tokens=99)
    )
    assert shorter.answers[0].shown_tokens == 99


def test_documents_share_a_call_only_as_far_as_they_fit(agent, tokenizer, monkeypatch, examples):
    one = agent()
    tokens = 2 * len(examples(tokenizer)[0].chunks[0])
    monkeypatch.setattr("memocr_jax.evaluation.methods.DOCUMENT_TOKENS", 2 * tokens + 1)
    answer_questions(one, NOTHING, examples(tokenizer, 5), settings(methods=METHODS[3:]))
    assert sorted(len(groups) for groups, _ in one.engine.calls) == [1, 2, 2]


def test_what_cannot_be_read_is_wrong_and_says_why(agent, tokenizer, examples):
    one = agent(lambda k: "unreadable" if k == 0 else "fine")
    results = evaluate_examples(one, NOTHING, examples(tokenizer, 1), settings(methods=METHODS[:2]))
    for r in results:
        if r["sample"] == 0:
            assert (r["status"], r["prediction"], r["image_tokens"], r["em"]) == ("TIMEOUT", None, None, 0.0)
        else:
            assert r["status"] == "OK" and r["prediction"]
    blank = evaluate_examples(
        agent(lambda k: " \n"), NOTHING, examples(tokenizer, 1), settings(methods=METHODS[2:3])
    )
    assert {(r["status"], r["prediction"]) for r in blank} == {("EMPTY", None)}


def test_scores_and_questions_without_an_answer(agent, tokenizer, examples):
    one = agent()
    one.engine.complete = lambda group, k: Completion(
        np.array(tokenizer.encode("I see \\boxed{The Gold 1}"), np.int32), np.zeros(1, np.float32), Stop.EOS
    )
    results = evaluate_examples(one, NOTHING, examples(tokenizer, 2), settings(samples=1))
    assert {r["id"]: r["em"] for r in results} == {"q0": 0.0, "q1": 1.0}
    none = evaluate_examples(one, NOTHING, examples(tokenizer, 1, answers=()), settings(samples=1))
    assert {(r["status"], r["em"], r["prediction"]) for r in none} == {("NO_ANSWER", 0.0, "The Gold 1")}


def test_greedy_and_sampling_reach_the_engine(agent, tokenizer, examples):
    one = agent()
    evaluate_examples(one, NOTHING, examples(tokenizer, 1), settings(temperature=0.0, samples=1))
    assert {sampling.temperature for _, sampling in one.engine.calls} == {0.0}
    one = agent()
    evaluate_examples(one, NOTHING, examples(tokenizer, 1), settings(temperature=0.6, top_p=0.9, samples=1))
    assert {(s.temperature, s.top_p) for _, s in one.engine.calls} == {(0.6, 0.9)}


def test_a_page_without_layout_has_the_same_words_in_one_size():
    memory = (
        "# The **answer** is 42\n\nbody <span style='font-size:40px'>large</span> *it* `code`\n\n"
        "- one\n- two\n\n| a | b |\n|---|---|\n| c | d |\n\n> said <font size=7>x</font><small>y</small>"
    )
    flat = flat_html(memory)
    assert all(
        tag not in flat for tag in ("<h1", "<strong", "<em", "<code", "<th>", "style", "<font", "<small")
    )

    def words(html):
        return "".join(re.sub("<[^>]*>", "", html).split())

    assert words(flat) == words(to_html(memory, "markdown"))
    assert flat.count("<li>") == 2 and flat.count("<td>") == 4 and "<p>The answer is 42</p>" in flat
    assert "&lt;script&gt;" in flat_html("# `<script>`") and "<script" not in flat_html(
        "# <script>x</script>"
    )
    assert flat_html("<h2 style='font-size:50px'>A</h2><b>b</b>", "html") == "<p>A</p>b"
