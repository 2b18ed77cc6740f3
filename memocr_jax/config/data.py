"""Settings of the data: what is read, how long the documents are, how the synthetic world looks.

This module imports nothing heavy, so that a configuration can be checked early.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from memocr_jax.config.answers import KEEPS_ANSWERS
from memocr_jax.core.errors import UserError
from render.bounds import NonNegativeInt, PositiveInt, out_of_bounds

WORLD_ATTRIBUTES = {"long": 8, "short": 4}
"""Attributes that the synthetic world knows, by `words` (data/vocabulary.py)."""
SHORT_NAMES = 24
"""Names in the world of short words."""

DataSource = Literal["synthetic", "flashrag", "memagent", "prepared"]
SentenceStyle = Literal["terse", "plain", "varied"]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic long-document world (docs/data.md): invented people, their facts, and questions."""

    questions: PositiveInt = 4096
    """Training questions; each has a document of its own."""
    names: Annotated[int, Ge(10)] = 200
    """Invented names that people are drawn from."""
    attributes: PositiveInt = 6
    """Attributes a person can have (the first N of the world's list)."""
    values: Annotated[int, Ge(5)] = 40
    """Values an attribute can take; at least 5, so that every split has values of its own."""
    numbers: bool = False
    """Also attributes whose values are numbers."""
    dates: bool = False
    """Also attributes whose values are dates."""
    facts: PositiveInt = 6
    """Fact sentences a document states about people chosen at random, the evidence included."""
    distractors: NonNegativeInt = 2
    """Further facts that are near misses: the right attribute of somebody else, or another one of theirs."""
    filler: NonNegativeInt = 0
    """Sentences that state no fact, spread over the document."""
    hops_min: PositiveInt = 1
    """Fewest facts that must be chained to answer."""
    hops_max: PositiveInt = 2
    """Most facts that must be chained to answer; a question's number is drawn uniformly."""
    chunks: NonNegativeInt = 2
    """Chunks of a document, each with about the same number of sentences; no sentence is cut.
    0 = cut by tokens, as a real document is."""
    words: Literal["long", "short"] = "long"
    """short: names and values of four letters, from short closed lists (24 names, 4 attributes), for the
    pages of tiny models."""
    style: SentenceStyle = "plain"
    """terse: `NAME ATTRIBUTE VALUE .` (no attribute when there is one only); plain: one sentence pattern for
    each attribute; varied: several paraphrases, for questions too."""

    def check(self, field: str = "data.synthetic") -> None:
        """Raise `UserError` for a value that cannot work, naming it as `field`.NAME."""
        if message := out_of_bounds(self, f"{field}."):
            raise UserError(message)
        kinds = WORLD_ATTRIBUTES[self.words]
        if self.attributes > kinds:
            raise UserError(f"{field}.attributes: {self.attributes} is too large; use at most {kinds}")
        if self.words == "short" and self.names > SHORT_NAMES:
            raise UserError(
                f"{field}.names: {self.names}, but there are {SHORT_NAMES} short names; use at most "
                f"{SHORT_NAMES} or {field}.words long"
            )
        for name, least in {"hops_max": self.hops_min, "facts": self.hops_max}.items():
            if getattr(self, name) < least:
                raise UserError(f"{field}.{name} is {getattr(self, name)}; use {least} or more")
        sentences = self.facts + self.distractors + self.filler
        if self.chunks > sentences:
            raise UserError(
                f"{field}.chunks: {self.chunks} chunks need as many sentences, but facts + distractors +"
                f" filler are {sentences}; raise one of them or lower chunks"
            )
        # Twice as many people as one document can need, so that drawing the next one never takes long.
        people = 2 * (self.facts + self.distractors + self.hops_max)
        if self.names < people:
            raise UserError(
                f"{field}.names: {self.names} is too few for {self.facts} facts and {self.distractors}"
                f" distractors of one document; use at least {people}"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where questions and documents come from, and how documents are cut into chunks."""

    source: DataSource = "synthetic"
    """synthetic: generated, needs no files; flashrag: JSON lines of FlashRAG's layout, or tfds://...;
    memagent: MemAgent's parquet files; prepared: folders that `python -m memocr_jax.data prepare` wrote."""
    path: str = ""
    """File with the training questions, or its address hf://datasets/OWNER/NAME/FILE; not for `synthetic`."""
    validation_path: str = ""
    """File with the validation questions; empty = the last `validation_questions` of `path`. Given alone,
    there is nothing to train on (evaluation)."""
    pool_path: str = ""
    """JSON lines of further paragraphs (`title`, `text`) to pad documents with; empty = the paragraphs of the
    other questions of the same file."""
    document_tokens: NonNegativeInt = 0
    """Length that assembled documents are padded to, in tokens; 0 = as they are."""
    document_passages: NonNegativeInt = 0
    """Number of passages that assembled documents are padded to; with document_tokens too, the first limit
    that is reached counts. 0 = no limit."""
    chunk_tokens: PositiveInt = 5000
    """Tokens of a chunk (arXiv 2601.21468: 5,000)."""
    max_chunks: NonNegativeInt = 8
    """Chunks of a document at most; a longer one loses its middle. 0 = no limit (evaluation)."""
    limit: NonNegativeInt = 0
    """Use only the first N training questions; 0 = all."""
    validation_questions: PositiveInt = 32
    """Questions of the validation split."""
    strict: bool = True
    """Stop at the first malformed row; otherwise skip such rows and report their number."""
    seed: NonNegativeInt = 0
    """Seed of the synthetic world, and of the choice and order of filler. (The order in which training takes
    the questions follows from run.seed.)"""
    workers: Annotated[int, Interval(ge=0, le=64), KEEPS_ANSWERS] = 0
    """Processes that assemble and tokenise the documents of training ahead of their use, each with a copy of
    the questions. 0 = two threads of the training process, which is enough as long as a step's `time/data_s`
    is small."""
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    """The synthetic world (source `synthetic` only)."""

    def check(self, field: str = "data") -> None:
        """Raise `UserError` for a value or a combination that cannot work, naming it as `field`.NAME."""
        if message := out_of_bounds(self, f"{field}."):
            raise UserError(message)
        if self.source == "synthetic":
            self.synthetic.check(f"{field}.synthetic")
        elif not (self.path or self.validation_path):
            raise UserError(
                f"{field}.path: empty, but {field}.source is {self.source!r}; give the file to read"
            )
