"""The lessons of the warm-up: facts of their own split, random headings, pages as they are drawn."""

import collections
import dataclasses
import itertools
from concurrent.futures import Future

import numpy as np
import pytest

from memocr_jax.agent.answers import boxed_answer
from memocr_jax.agent.cloze import visible_text
from memocr_jax.agent.prompts import load_templates
from memocr_jax.config import WarmupStage, load_config
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import TurnKind
from memocr_jax.data.loader import load_examples
from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.sft.lessons import LessonKind, Lessons, memory_text
from render.types import MemoryPage, PageStatus
from render.views import fit

CONFIG = load_config("configs/nano_warmup.yaml")
TOKENIZER = load_tokenizer(CONFIG.tokenizer.path)
TEMPLATES = load_templates(CONFIG.prompts.path)
STAGE = WarmupStage(facts_min=5)


class Drawer:
    """A renderer that remembers what it was given; the page's colours depend on the text."""

    def __init__(self):
        self.texts = []

    def submit(self, memory):
        self.texts.append(memory)
        future = Future()
        future.set_result(MemoryPage(page_of(memory), PageStatus.OK, "", memory))
        return future


def page_of(memory):
    return np.random.default_rng(len(memory)).integers(0, 255, (224, 112, 3), np.uint8)


def lessons(split="train", seed=0, world=None, renderer=None):
    world = world or CONFIG.data.synthetic
    return Lessons(world, 0, seed, split, TOKENIZER, TEMPLATES, CONFIG.agent, renderer or Drawer())


def make(kind, rows, stage=STAGE, update=1, **options):
    return lessons(**options).make(LessonKind.parse(kind), stage, update, rows)


def prompt(taught):
    return TOKENIZER.decode(np.concatenate([taught.turn.prefix, taught.turn.suffix]))


def answer(taught):
    return TOKENIZER.decode(taught.turn.completion.tokens)


def document(taught):
    """Facts of a draft's section, in order."""
    words = prompt(taught).split("?", 1)[1].split("none")[0].split(".")
    return [tuple(w.split()) for w in words if w.split()]


def test_a_draft_keeps_every_fact_in_order_with_one_as_heading():
    for [taught] in make("draft", 40):
        lines = answer(taught).split("\n\n")
        assert lines[0].startswith("# ") and not any(line.startswith("#") for line in lines[1:])
        facts = [tuple(line.removeprefix("#").split()) for line in lines]
        assert sorted(facts) == sorted(document(taught))
        assert facts[1:] == [fact for fact in document(taught) if fact != facts[0]]


def test_the_heading_of_a_taught_draft_says_nothing_about_the_question():
    asked = collections.Counter()
    rows = make("draft", 600)
    for [taught] in rows:
        name = prompt(taught).split("about", 1)[1].split()[0]
        assert (name,) in [fact[:1] for fact in document(taught)]
        asked[answer(taught).split()[1] == name] += 1
    # One of five facts at random: 120 of 600, five standard deviations are 49.
    assert abs(asked[True] - 120) < 49


def test_questions_are_answered_by_the_page_they_are_asked_of():
    renderer = Drawer()
    for row, text in zip(make("read@32", 20, renderer=renderer), renderer.texts, strict=True):
        words = visible_text(text).split()
        known = dict(zip(words[::2], words[1::2], strict=True))
        kinds = collections.Counter(taught.region for taught in row)
        assert kinds["heading"] + kinds["body"] == 5 and kinds["copy"] == kinds["cloze"] == 1
        for taught in row:
            question = TOKENIZER.decode(taught.turn.suffix).split("assistant")[0].split()
            if taught.region in ("heading", "body"):
                assert boxed_answer(answer(taught)) == known[question[0]]
                assert (f"# {question[0]} " in text) == (taught.region == "heading")
            elif taught.region == "copy":
                assert visible_text(answer(taught)).split() == words
            else:
                filled = [boxed_answer(answer(taught)) if w == "____" else w for w in question[-len(words) :]]
                assert filled == words and taught.turn.kind is TurnKind.GAP_FILL


@pytest.mark.parametrize(("budget", "shape"), [(32, (224, 112, 3)), (8, (112, 56, 3)), (2, (56, 28, 3))])
def test_a_view_is_the_page_as_it_is_shown_everywhere(budget, shape):
    renderer = Drawer()
    [row] = make(f"read@{budget}", 1, renderer=renderer)
    view = row[0].turn.image
    assert view.shape == shape and (view == fit(page_of(renderer.texts[0]), budget)).all()
    assert ("copy" in {t.region for t in row}) == (budget == 32), "a small page cannot be copied"


def test_headings_can_be_asked_about_first_and_on_small_pages_alone():
    stage = WarmupStage(facts_min=5, questions=2, ask="headings")
    for row in make("read@32", 20, stage=stage):
        regions = [t.region for t in row if t.region in ("heading", "body")]
        assert len(regions) == 2 and regions == sorted(regions, reverse=True)
    small = [[t.region for t in row] for row in make("read@2", 40, stage=stage)]
    assert {len(regions) for regions in small} == {1} and sum(r[0] == "heading" for r in small) > 30


def test_titles_are_two_facts_and_can_be_read_at_every_budget():
    renderer = Drawer()
    rows = make("titles@2", 20, renderer=renderer)
    for text in renderer.texts:
        assert text.count("#") == len(text.split("\n\n")) == 2
    for row in rows:
        assert {t.region for t in row} == {"heading", "cloze", "copy"}


@pytest.mark.parametrize("kind", ["lookup", "titles@32"])
def test_a_chain_is_answered_link_by_link(kind):
    world = dataclasses.replace(CONFIG.data.synthetic, hops_min=2, hops_max=2, attributes=2, facts=6)
    renderer = Drawer()
    rows = make(kind, 20, stage=dataclasses.replace(STAGE, facts_min=6), world=world, renderer=renderer)
    for number, row in enumerate(rows):
        [chain] = [t for t in row if t.region == "chain"]
        text = prompt(chain) if kind == "lookup" else renderer.texts[number]
        lines = [line.replace("#", " ").split() for line in text.splitlines()]
        known = {tuple(words[:2]): words[2] for words in lines if len(words) == 3 and "?" not in words}
        # "Vera kin pet ?" over "Vera kin Hugo" and "Hugo pet toad" is answered " Hugo \\boxed{ toad}".
        first, relation, attribute = TOKENIZER.decode(chain.turn.suffix).split("?")[0].split()[-3:]
        link, value = answer(chain).removesuffix("<|im_end|>").split(" ", 2)[1:]
        assert link == known[first, relation]
        assert boxed_answer(value) == known[link, attribute]
        assert len(known) == (2 if kind.startswith("titles") else 6)


def test_no_fact_of_the_evaluation_is_taught():
    stated = set()
    for kind in ("draft", "lookup", "read@32"):
        renderer = Drawer()
        rows = make(kind, 300, renderer=renderer)
        texts = [
            *renderer.texts,
            *(answer(t) for row in rows for t in row),
            *(prompt(t) for row in rows for t in row),
        ]
        for text in texts:
            words = text.replace("#", " ").replace(".", " ").split()
            stated |= set(itertools.pairwise(words))
    data = dataclasses.replace(CONFIG.data, validation_questions=300)
    held_out = set()
    for split in ("validation", "test"):
        examples = load_examples(data, TOKENIZER, split)
        for i in range(300):
            words = TOKENIZER.decode(examples[i].chunks[0]).replace(".", " ").split()
            held_out |= set(zip(words[::2], words[1::2], strict=True))
    assert len(held_out) > 400 and len(stated) > 800
    assert not stated & held_out


def test_a_later_chunk_comes_with_the_memory_of_those_before():
    world = dataclasses.replace(CONFIG.data.synthetic, facts=6, chunks=2)
    first = later = 0
    for [taught] in make("draft", 60, stage=WarmupStage(facts_min=6), world=world):
        text = prompt(taught)
        facts = [tuple(line.removeprefix("#").split()) for line in answer(taught).split("\n\n")]
        if "none" in text:
            first += 1
            assert len(facts) == 3
        else:
            later += 1
            assert len(facts) == 6 and text.count("#") == 1
    assert first > 10 and later > 10


def test_lessons_are_functions_of_seed_split_and_number():
    def tokens(rows):
        return [t.turn.completion.tokens.tolist() for row in rows for t in row]

    same = tokens(make("lookup", 4))
    assert tokens(make("lookup", 4)) == same
    for other in ({"update": 2}, {"seed": 1}, {"split": "validation"}):
        assert tokens(make("lookup", 4, **other)) != same


def test_memory_text():
    facts = lessons()._document(2, np.random.default_rng(0)).facts
    a, b = (" ".join((f.person, f.value)) for f in facts)
    assert memory_text(facts, [1]) == f" {a}\n\n# {b}"
    assert memory_text(facts, []) == f" {a}\n\n {b}"


@pytest.mark.parametrize("text", ["reed", "read", "read@", "read@0", "read@x", "draft@8"])
def test_an_unknown_lesson_is_said(text):
    with pytest.raises(UserError, match=r"warmup\.stages.*use draft, lookup, read@BUDGET"):
        LessonKind.parse(text)
