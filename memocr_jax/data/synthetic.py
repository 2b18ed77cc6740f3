"""The synthetic long-document world: invented people, facts about them, questions of one or more hops.

Everything follows from the settings, the seed, the split and a question's number; nothing is stored. A fact
is a triple (person, attribute, value), and every triple belongs to one split for good, whatever the seed, so
no fact of the validation or test split is ever stated in training. All splits use the same names and words.
docs/data.md describes the world.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from memocr_jax.config.data import SyntheticConfig
from memocr_jax.data.vocabulary import (
    DATES,
    FILLER,
    NUMBERS,
    RELATIONS,
    SHORT_RELATIONS,
    SHORT_WORDS,
    WORDS,
    Attribute,
    name,
    short_name,
)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_BUCKETS: dict[Split, tuple[int, ...]] = {"validation": (0,), "test": (1,), "train": (2, 3, 4)}
_NUM_BUCKETS = 5
_TRIES = 100


@dataclasses.dataclass(frozen=True)
class Fact:
    """One (person, attribute, value) and the sentence that states it."""

    person: str
    attribute: str
    """Key of the attribute or relation."""
    value: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class SyntheticQuestion:
    """A question, its answer and its document."""

    example_id: str
    question: str
    answer: str
    hops: int
    evidence: tuple[Fact, ...]
    """The facts to chain, from the person named in the question to the answer."""
    facts: tuple[Fact, ...]
    """All facts of the document in reading order, the evidence among them."""
    fact_sections: tuple[int, ...]
    """For each of `facts` the section that states it."""
    sections: tuple[str, ...]
    """The document: one text a chunk, or a single text when `chunks` is 0."""


class SyntheticWorld(Sequence):
    """The questions of one split, made when asked for; `world[i]` depends on nothing but its arguments."""

    def __init__(self, config: SyntheticConfig, seed: int, split: Split, questions: int | None = None):
        """`questions` defaults to `config.questions`. Raises `UserError` for impossible settings."""
        config.check()
        self.config = config
        self.seed = seed
        self.split = split
        self._questions = config.questions if questions is None else questions
        short = config.words == "short"
        self._name = short_name if short else name
        words = tuple(
            dataclasses.replace(kind, count=min(config.values, kind.count))
            for kind in (SHORT_WORDS if short else WORDS)[: config.attributes]
        )
        self._attributes = words + NUMBERS * config.numbers + DATES * config.dates
        self._relations = tuple(
            dataclasses.replace(kind, count=config.names)
            for kind in (SHORT_RELATIONS if short else RELATIONS) * (config.hops_max > 1)
        )

    def __len__(self) -> int:
        return self._questions

    def __getitem__(self, index: int) -> SyntheticQuestion:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        draft = _Document(self, rng)
        chain = draft.chain(hops=int(rng.integers(self.config.hops_min, self.config.hops_max + 1)))
        while len(draft.facts) < self.config.facts:
            draft.add_any()
        for number in range(self.config.distractors):
            draft.add_near_miss(chain, same_person=number % 2 == 1)
        order = list(draft.facts)
        sentences: list[Fact | str] = [*order, *draft.filler()]
        rng.shuffle(sentences)  # type: ignore[arg-type]
        parts = np.array_split(np.arange(len(sentences)), max(1, self.config.chunks))
        texts = [s.sentence if isinstance(s, Fact) else s for s in sentences]
        section_of = {int(i): number for number, part in enumerate(parts) for i in part}
        return SyntheticQuestion(
            example_id=f"synthetic-{self.split}-{index}",
            question=draft.question(chain),
            answer=chain[-1].value,
            hops=len(chain),
            evidence=tuple(chain),
            facts=tuple(s for s in sentences if isinstance(s, Fact)),
            fact_sections=tuple(section_of[i] for i, s in enumerate(sentences) if isinstance(s, Fact)),
            sections=tuple(" ".join(texts[i] for i in part) for part in parts),
        )

    def state(self, person: str, kind: Attribute, value: str, rng: np.random.Generator) -> str:
        """The sentence for a fact in the world's style."""
        if self.config.style == "terse":
            only = len(self._attributes) == 1 and not self._relations
            return f"{person} {value} ." if only else f"{person} {kind.key} {value} ."
        return _fit_article(self._pick(kind.statements, rng).format(name=person, value=value))

    def ask(self, person: str, path: Sequence[Attribute], rng: np.random.Generator) -> str:
        """The question for the last attribute of `path`, reached from `person` over its relations."""
        if self.config.style == "terse":
            only = len(self._attributes) == 1 and not self._relations
            return f"{person} ?" if only else " ".join([person, *(kind.key for kind in path), "?"])
        who = person
        for relation in path[:-1]:
            who = f"the {relation.noun} of {who}"
        return self._pick(path[-1].questions, rng).format(who=who)

    def ask_about(self, fact: Fact, rng: np.random.Generator) -> str:
        """The question that this one fact answers."""
        kind = next(k for k in (*self._attributes, *self._relations) if k.key == fact.attribute)
        return self.ask(fact.person, [kind], rng)

    def _pick(self, patterns: Sequence[str], rng: np.random.Generator) -> str:
        return patterns[int(rng.integers(len(patterns)))] if self.config.style == "varied" else patterns[0]


class _Document:
    """A document being drawn: facts so far, each (person, attribute) at most once."""

    def __init__(self, world: SyntheticWorld, rng: np.random.Generator):
        self.world = world
        self.rng = rng
        self.facts: list[Fact] = []
        self._kinds = {kind.key: kind for kind in world._attributes + world._relations}
        self._said: set[tuple[int, str]] = set()
        self._values: set[tuple[str, int]] = set()
        self._chain_people: list[int] = []

    def chain(self, hops: int) -> list[Fact]:
        """Draw the evidence: `hops` - 1 relations, then an attribute."""
        people = [self._person()]
        evidence = []
        while len(people) < hops:
            relation = self._choose(self.world._relations)
            person = self._draw(people[-1], relation)
            if person in people:  # a chain that returns to somebody would be shorter than it looks
                continue
            evidence.append(self._say(people[-1], relation, person))
            people.append(person)
        self._chain_people = people
        kind = self._choose(self.world._attributes)
        return [*evidence, self._say(people[-1], kind, self._draw(people[-1], kind))]

    def add_any(self) -> None:
        """State something about somebody."""
        kinds = list(self._kinds.values())
        self._add(lambda: (self._person(), self._choose(kinds)))

    def add_near_miss(self, chain: Sequence[Fact], same_person: bool) -> None:
        """State the asked attribute of somebody else, or another attribute of somebody in the chain."""
        asked = self._kinds[chain[-1].attribute]
        unsaid = [
            (person, kind)
            for person in self._chain_people
            for kind in self._kinds.values()
            if (person, kind.key) not in self._said
        ]
        if same_person and unsaid:
            self._add(lambda: self._choose(unsaid))
        else:
            self._add(lambda: (self._person(), asked))

    def filler(self) -> list[str]:
        count = self.world.config.filler
        order = [i for _ in range(0, count, len(FILLER)) for i in self.rng.permutation(len(FILLER))]
        return [FILLER[i] for i in order[:count]]

    def question(self, chain: Sequence[Fact]) -> str:
        path = [self._kinds[fact.attribute] for fact in chain]
        return self.world.ask(chain[0].person, path, self.rng)

    def _add(self, draw: Callable[[], tuple[int, Attribute]]) -> None:
        for attempt in itertools.count():
            person, kind = draw()
            value = self._draw(person, kind)
            # Two people with the same value are avoided while that is easy (small worlds run out of values).
            # In the world of long words somebody may be their own mentor: without that it would be another
            # world (and the small tokenizer, which is trained on it, another tokenizer).
            own = kind.values is short_name and value == person
            repeated = (kind.key, value) in self._values and attempt < _TRIES
            if (person, kind.key) not in self._said and not repeated and not own:
                self._say(person, kind, value)
                return

    def _say(self, person: int, kind: Attribute, value: int) -> Fact:
        who, what = self.world._name(person), kind.value(value)
        fact = Fact(who, kind.key, what, self.world.state(who, kind, what, self.rng))
        self._said.add((person, kind.key))
        self._values.add((kind.key, value))
        self.facts.append(fact)
        return fact

    def _draw(self, person: int, kind: Attribute) -> int:
        """A value that this split may state (each triple is in one of five buckets, in turn)."""
        first = -_hash(self.world._name(person), kind.key)
        ranges = [
            range((first + bucket) % _NUM_BUCKETS, kind.count, _NUM_BUCKETS)
            for bucket in _BUCKETS[self.world.split]
        ]
        position = int(self.rng.integers(sum(map(len, ranges))))
        return next(itertools.islice(itertools.chain(*ranges), position, None))

    def _person(self) -> int:
        return int(self.rng.integers(self.world.config.names))

    def _choose(self, options: Sequence):
        return options[int(self.rng.integers(len(options)))]


def split_of(person: str, attribute: str, value_index: int) -> Split:
    """The one split that may state this fact (`value_index`: the value's number in its attribute's list)."""
    bucket = (_hash(person, attribute) + value_index) % _NUM_BUCKETS
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def _hash(person: str, attribute: str) -> int:
    return zlib.crc32(f"{person}|{attribute}".encode())


def _fit_article(sentence: str) -> str:
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)
