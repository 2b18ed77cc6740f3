"""Lessons of a cold start in the synthetic world: writing a memory, and reading one, as text or as a page.

A lesson is a set of turns that share a prefix, with the completion that is taught instead of one that was
sampled. Everything is a function of the seed, the split and the lesson's number. The heading of a memory is
one of its facts at random: GRPO has to find out which one matters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal

import numpy as np

from memocr_jax.agent.agent import PageRenderer
from memocr_jax.agent.cloze import make_gap_fill
from memocr_jax.agent.prompts import Prompt, Templates, draft_prompt, read_prompt, read_text_prompt
from memocr_jax.config import AgentConfig, WarmupStage
from memocr_jax.config.data import SyntheticConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import host_rng
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.data.synthetic import Fact, Split, SyntheticQuestion, SyntheticWorld
from memocr_jax.models.tokenizer import Tokenizer
from render.types import MemoryPage
from render.views import fit, image_tokens

Region = Literal["memory", "heading", "body", "chain", "cloze", "copy"]
"""What a taught completion is about: a whole memory, a fact in the heading or in the body of a page, several
facts to be chained, a cloze, or the page's text."""

COPY = "copy page"
"""Asks for the page's text. It is no question of the world, so the evaluation never asks it."""
HEADINGS = ((1, 0.85), (0, 0.1), (2, 0.05))
"""How many facts of a page to read are headings, with the share of such pages."""


@dataclasses.dataclass(frozen=True)
class LessonKind:
    """One entry of a stage's `rows`: the kind of lesson and, for a page, its budget."""

    name: Literal["draft", "lookup", "read", "titles"]
    budget_tokens: int = 0

    @classmethod
    def parse(cls, text: str) -> LessonKind:
        """Read "draft", "lookup" or "read@32". Raises UserError for anything else."""
        name, _, budget = text.partition("@")
        if name in ("draft", "lookup") and not budget:
            return cls(name)
        if name in ("read", "titles") and budget.isdecimal() and int(budget) > 0:
            return cls(name, int(budget))
        raise UserError(
            f"warmup.stages: {text!r} is not a lesson; use draft, lookup, read@BUDGET or titles@BUDGET"
        )


@dataclasses.dataclass(frozen=True)
class Taught:
    """A turn with the completion that is taught, and what it is about."""

    turn: Turn
    region: Region
    advantage: float = 1.0
    """The weight of each of its tokens, which packing requires; all taught tokens weigh the same."""


class Lessons:
    """Makes lessons of one split.

    Args:
        world: the world's settings; its documents give facts and questions.
        seed: of the run; `data_seed`: of the world.
        split: lessons of another split state other facts.
        renderer: draws pages.
    """

    def __init__(
        self,
        world: SyntheticConfig,
        data_seed: int,
        seed: int,
        split: Split,
        tokenizer: Tokenizer,
        templates: Templates,
        agent: AgentConfig,
        renderer: PageRenderer,
    ):
        self._world, self._data_seed, self._seed, self._split = world, data_seed, seed, split
        self._tokenizer, self._templates, self._agent, self._renderer = tokenizer, templates, agent, renderer

    def make(self, kind: LessonKind, stage: WarmupStage, update: int, rows: int) -> list[list[Taught]]:
        """The lessons of `rows` packed rows of an update, as the stage describes them."""
        started = [self._start(kind, stage, update, row) for row in range(rows)]
        return [finish(page) for finish, page in started]

    def _start(self, kind: LessonKind, stage: WarmupStage, update: int, row: int):
        """A function that finishes the lesson, and the future of its page (drawn while others are
        started)."""
        rng = host_rng(self._seed, "warmup", self._split, kind.name, kind.budget_tokens, update, row)
        number = int(rng.integers(stage.facts_min, (stage.facts_max or self._world.facts) + 1))
        if kind.name == "draft":
            return lambda page: self._draft(number, rng), None
        document = self._document(number, rng)
        chosen = [document.facts[i] for i in rng.permutation(number)]
        headings = rng.permutation(number)[
            : int(rng.choice([n for n, _ in HEADINGS], p=[p for _, p in HEADINGS]))
        ]
        if kind.name == "titles":
            chosen = chosen[:2] if document.hops == 1 else [f for f in chosen if f in document.evidence]
            headings = np.arange(len(chosen))
        elif rng.random() < 0.75:  # where drafts have it
            order = [*headings, *(i for i in range(number) if i not in headings)]
            chosen, headings = [chosen[i] for i in order], np.arange(len(headings))
        text = memory_text(chosen, headings)
        if kind.name == "lookup":
            return lambda page: self._questions(None, document, chosen, headings, text, stage, rng), None
        page = self._renderer.submit(text)
        return lambda page: self._read(kind, document, chosen, headings, text, stage, rng, page), page

    def _document(self, facts: int, rng: np.random.Generator):
        """A question of the world about a document of `facts` facts, whatever `data.synthetic.facts` is."""
        world = self._world
        distractors = min(world.distractors, max(0, facts - world.hops_max))
        hops = min(world.hops_max, facts)
        settings = dataclasses.replace(
            world,
            facts=facts - distractors,
            distractors=distractors,
            hops_min=min(world.hops_min, hops),
            hops_max=hops,
            chunks=min(world.chunks, facts),
        )
        number = int(rng.integers(2**31 - 1))
        return SyntheticWorld(settings, self._data_seed, self._split, number + 1)[number]

    def _draft(self, number: int, rng: np.random.Generator) -> list[Taught]:
        """One drafting turn over one of the document's chunks, with the memory of those before it."""
        document = self._document(number, rng)
        sections = np.array(document.fact_sections)
        chunk = int(rng.integers(len(document.sections)))
        before = [f for f, s in zip(document.facts, sections, strict=True) if s < chunk]
        here = [f for f, s in zip(document.facts, sections, strict=True) if s == chunk]
        if before:
            before = _heading_first(before, rng)
        so_far = memory_text(before, [0]) if before else ""
        memory = memory_text(_heading_first([*before, *here], rng), [0])
        prompt = draft_prompt(
            document.question,
            self._tokenizer.encode(document.sections[chunk]),
            so_far,
            self._agent.memory_format,
            self._templates,
        )
        return [Taught(self._turn(prompt, memory, TurnKind.DRAFT, None), "memory")]

    def _read(
        self, kind: LessonKind, document, facts, headings, text, stage, rng, page: Future[MemoryPage]
    ) -> list[Taught]:
        drawn = page.result()
        if drawn.pixels is None:
            raise UserError(f"a page of the warm-up could not be drawn ({drawn.status}: {drawn.detail})")
        view = fit(drawn.pixels, kind.budget_tokens)
        # Where every fact is a heading, all are large enough to be read.
        full = kind.name == "titles" or kind.budget_tokens >= self._agent.budget_tokens
        return self._questions(view, document, facts, headings, text, stage, rng, full)

    def _questions(
        self,
        view: np.ndarray | None,
        document: SyntheticQuestion,
        facts: Sequence[Fact],
        headings: Sequence[int] | np.ndarray,
        text: str,
        stage: WarmupStage,
        rng: np.random.Generator,
        full: bool = True,
    ) -> list[Taught]:
        """Questions about facts, the document's own if it chains several, clozes, and (for a page) its
        text, as siblings.

        Without `full` the page is too small to be read whole, so it gets questions about facts alone. The
        answer to a chain names the people on the way and then boxes the value.
        """
        agent = self._agent
        asked: list[tuple[TurnKind, Region, str, str]] = []
        order = [int(i) for i in rng.permutation(len(facts))]
        number = stage.questions or len(facts)
        if stage.ask == "headings":
            order.sort(key=lambda i: i not in headings)
            number = number if full else 1
        for i in order[:number]:
            region: Region = "heading" if i in headings else "body"
            asked.append((TurnKind.QA, region, self._ask(facts[i], rng), boxed(facts[i].value)))
        if document.hops > 1 and full:
            *links, last = [fact.value for fact in document.evidence]
            asked.append((TurnKind.QA, "chain", document.question, " ".join([*links, boxed(last)])))
        for _ in range(stage.clozes if full else 0):
            cloze = make_gap_fill(
                text,
                rng,
                agent.gap_fill_window_chars,
                agent.gap_fill_blanks,
                agent.memory_format,
                self._templates,
            )
            if cloze:
                asked.append((TurnKind.GAP_FILL, "cloze", cloze.question, boxed(cloze.answer)))
        if view is not None and full:
            asked.append((TurnKind.QA, "copy", COPY, text))
        taught = []
        for turn_kind, region, question, answer in asked:
            if view is None:
                prompt = read_text_prompt(question, text, self._templates)
            else:
                prompt = read_prompt(question, self._templates)
            taught.append(Taught(self._turn(prompt, answer, turn_kind, view), region))
        return taught

    def _ask(self, fact: Fact, rng: np.random.Generator) -> str:
        world = SyntheticWorld(self._world, self._data_seed, self._split, 1)
        return world.ask_about(fact, rng)

    def _turn(self, prompt: Prompt, answer: str, kind: TurnKind, view: np.ndarray | None) -> Turn:
        counts = [] if view is None else [image_tokens(view)]
        prefix, suffix = self._tokenizer.encode_prompt(prompt, counts)
        return taught_turn(
            prefix, suffix, [*self._tokenizer.encode(answer), self._tokenizer.im_end_id], kind, view
        )


def taught_turn(prefix, suffix, completion, kind: TurnKind, view: np.ndarray | None) -> Turn:
    """A turn whose completion was not sampled; ids of its parts, end of turn included."""
    tokens = np.asarray(completion, np.int32)
    return Turn(
        0,
        0,
        kind,
        np.asarray(prefix, np.int32),
        np.asarray(suffix, np.int32),
        view,
        Completion(tokens, np.zeros(len(tokens), np.float32), Stop.EOS),
    )


def memory_text(facts: Sequence[Fact], headings: Sequence[int] | np.ndarray) -> str:
    """A memory that states each fact in a paragraph of its own, those of `headings` (indices) as headings."""
    words = [" ".join(fact.sentence.rstrip(".").split()) for fact in facts]
    return "\n\n".join(f"# {w}" if i in headings else f" {w}" for i, w in enumerate(words))


def boxed(answer: str) -> str:
    return f"\\boxed{{ {answer}}}"


def _heading_first(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """The facts with one drawn at random in front, the others in their order."""
    first = int(rng.integers(len(facts)))
    return [facts[first], *(f for i, f in enumerate(facts) if i != first)]
