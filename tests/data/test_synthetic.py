import collections
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memocr_jax.config.data import SyntheticConfig
from memocr_jax.data.synthetic import SPLITS, SyntheticWorld, split_of
from memocr_jax.data.vocabulary import DATES, NUMBERS, RELATIONS, WORDS, name

ALL_KINDS = {kind.key: kind for kind in WORDS + NUMBERS + DATES + RELATIONS}
NANO = SyntheticConfig(
    names=24, attributes=1, values=40, facts=5, distractors=0, hops_max=1, chunks=1, style="terse"
)
HARD = SyntheticConfig(
    names=60, attributes=8, values=54, numbers=True, dates=True, facts=8, distractors=4, filler=5, hops_max=3,
    chunks=3, style="varied",
)  # fmt: skip


def questions(config, split="train", number=200, seed=0):
    return list(SyntheticWorld(config, seed, split, number))


def triples(batch):
    return {(fact.person, fact.attribute, fact.value) for question in batch for fact in question.facts}


def follow(question):
    """Answer a question as a reader of the document would: look the facts up one after the other."""
    known = {(fact.person, fact.attribute): fact.value for fact in question.facts}
    person = question.evidence[0].person
    for fact in question.evidence:
        person = known[person, fact.attribute]
    return person


@pytest.mark.parametrize("config", [SyntheticConfig(), NANO, HARD], ids=["default", "nano", "hard"])
class TestWorlds:
    def test_any_question_can_be_made_alone_and_again(self, config):
        batch = questions(config, number=20)
        world = SyntheticWorld(config, 0, "train", 20)
        assert [world[i] for i in reversed(range(20))] == batch[::-1]
        assert questions(config, number=20, seed=1) != batch

    def test_splits_share_no_fact_whatever_the_seed(self, config):
        seen = {split: triples(questions(config, split, 300, seed)) for seed, split in enumerate(SPLITS)}
        for one, other in itertools.combinations(SPLITS, 2):
            assert not seen[one] & seen[other]
        # ... while they do share names and words, so that what is learned can carry over.
        for part in (0, 2):
            shared = {t[part] for t in seen["train"]} & {t[part] for t in seen["validation"]}
            assert len(shared) > 10

    def test_each_fact_is_in_the_split_that_split_of_says(self, config):
        for split in SPLITS:
            for person, attribute, value in triples(questions(config, split, 50)):
                kind = ALL_KINDS[attribute]
                number = config.names if attribute in {k.key for k in RELATIONS} else kind.count
                index = next(i for i in range(number) if kind.value(i) == value)
                assert split_of(person, attribute, index) == split

    def test_documents_are_consistent_and_answer_their_question(self, config):
        for question in questions(config):
            assert follow(question) == question.answer
            keys = [(fact.person, fact.attribute) for fact in question.facts]
            assert len(keys) == len(set(keys)) == config.facts + config.distractors
            assert len(question.evidence) == question.hops
            assert config.hops_min <= question.hops <= config.hops_max
            assert question.answer not in question.question.split()
            for fact, section in zip(question.facts, question.fact_sections, strict=True):
                assert fact.sentence in question.sections[section]
            assert list(question.fact_sections) == sorted(question.fact_sections)
            assert len(question.sections) == config.chunks
            people = [fact.person for fact in question.evidence]
            assert len(set(people)) == len(people), "a chain must not return to a person"

    def test_evidence_may_lie_anywhere(self, config):
        """The place of the last evidence among the document's facts is uniform (chi-square)."""
        number = config.facts + config.distractors
        places = collections.Counter(q.facts.index(q.evidence[-1]) for q in questions(config, number=1500))
        assert stats.chisquare([places[i] for i in range(number)]).pvalue > 0.001


def test_the_question_names_the_chain():
    config = SyntheticConfig(hops_min=3, hops_max=3, facts=6, style="plain")
    for question in questions(config, number=50):
        first, second, last = question.evidence
        nouns = [ALL_KINDS[f.attribute].noun for f in (first, second)]
        assert f"the {nouns[1]} of the {nouns[0]} of {first.person}" in question.question
        assert first.value == second.person and second.value == last.person


def test_terse_style_is_name_value_when_there_is_one_attribute():
    for question in questions(NANO, number=50):
        fact = question.evidence[0]
        assert question.question == f"{fact.person} ?"
        assert fact.sentence == f"{fact.person} {fact.value} ."
        assert question.sections == (" ".join(f.sentence for f in question.facts),)


def test_varied_style_says_and_asks_the_same_in_several_ways():
    said = collections.defaultdict(set)
    asked = collections.defaultdict(set)
    for question in questions(HARD, number=600):
        for fact in question.facts:
            kind = ALL_KINDS[fact.attribute]
            said[fact.attribute].add(
                fact.sentence.replace(fact.person, "N").replace(fact.value, "V").replace(" an V", " a V")
            )
        last = question.evidence[-1]
        asked[last.attribute].add(question.question.split(question.evidence[0].person)[-1])
    for key, kind in ALL_KINDS.items():
        assert len(said[key]) >= len(kind.statements), key


def test_near_misses_are_there():
    config = SyntheticConfig(facts=2, distractors=2, hops_max=1, attributes=8, chunks=1)
    for question in questions(config, number=50):
        target = question.evidence[-1]
        same_attribute = [
            f for f in question.facts if f.attribute == target.attribute and f.person != target.person
        ]
        same_person = [
            f for f in question.facts if f.person == target.person and f.attribute != target.attribute
        ]
        assert same_attribute and same_person


def test_articles_fit_their_words():
    texts = " ".join(" ".join(q.sections) for q in questions(HARD, number=300))
    assert " a editor" not in texts and " an editor" in texts and " a baker" in texts


def test_hops_are_drawn_evenly():
    hops = collections.Counter(q.hops for q in questions(SyntheticConfig(), number=1000))
    assert stats.chisquare(list(hops.values())).pvalue > 0.001 and set(hops) == {1, 2}


def test_chance_is_low():
    """Always giving the commonest answer, or any value of the document, must not pay."""
    batch = questions(SyntheticConfig(), number=1000)
    commonest = collections.Counter(q.answer for q in batch).most_common(1)[0][1]
    assert commonest < 20


def test_names_are_distinct_capitalised_and_no_word_of_the_world():
    names = [name(index) for index in range(5000)]
    assert len(set(names)) == 5000
    assert all(n.isalpha() and n == n.capitalize() for n in names)
    assert not {n.lower() for n in names} & {v for kind in WORDS for v in kind.values}


def test_values_are_distinct_within_an_attribute():
    for kind in WORDS + NUMBERS + DATES:
        values = [kind.value(i) for i in range(kind.count)]
        assert len(set(values)) == kind.count
        assert all(pattern.count("{name}") >= 1 and "{value}" in pattern for pattern in kind.statements)
        assert all("{who}" in pattern for pattern in kind.questions)


@settings(max_examples=60)
@given(
    st.integers(1, 12), st.integers(0, 6), st.integers(0, 30), st.integers(1, 3), st.integers(1, 8),
    st.integers(5, 80), st.booleans(), st.sampled_from(["terse", "plain", "varied"]), st.sampled_from(SPLITS),
)  # fmt: skip
def test_every_allowed_setting_gives_documents(
    facts, distractors, filler, hops, attributes, values, more, style, split
):
    facts = max(facts, hops)
    config = SyntheticConfig(
        names=max(10, 2 * (facts + distractors + hops)), attributes=attributes, values=values, numbers=more,
        dates=more, facts=facts, distractors=distractors, filler=filler, hops_max=hops, chunks=1, style=style,
    )  # fmt: skip
    for question in questions(config, split, 3):
        assert follow(question) == question.answer
        sentences = facts + distractors + filler
        if style == "plain" and not more:
            assert sum(s.count(".") for s in question.sections) == sentences


def test_the_world_is_the_same_everywhere():
    """A change of this digest changes every run, the tokenizer and the nano checkpoint: make it knowingly."""
    text = "\n".join(f"{q.question}|{q.answer}|{q.sections}" for q in questions(SyntheticConfig(), number=50))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "0df8eae74f21f9c1"


def test_order_of_sentences_differs_between_questions():
    places = {np.argmax([f is q.evidence[0] for f in q.facts]) for q in questions(NANO, number=50)}
    assert len(places) == 5
