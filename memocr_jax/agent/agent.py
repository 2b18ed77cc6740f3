"""The agent: it drafts a memory over the chunks of a document, has it drawn, and reads the page.

The same code serves training, evaluation and use; only sampling and the views differ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

import numpy as np
from flax import nnx

from memocr_jax.agent.cloze import GapFill, make_gap_fill
from memocr_jax.agent.prompts import DEFAULT_TEMPLATES, Templates, draft_prompt, read_prompt
from memocr_jax.config import AgentConfig, SamplingConfig
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.rng import host_rng, row_key
from memocr_jax.core.types import QaExample, Turn, TurnKind
from memocr_jax.engine import Engine, PromptGroup, PromptLimits
from memocr_jax.models.config import VisionConfig
from memocr_jax.models.images import num_windows
from memocr_jax.models.tokenizer import Tokenizer
from render.settings import TOKEN_PX, RenderSettings
from render.types import MemoryPage
from render.views import degrade, fit, image_tokens, token_grid


@runtime_checkable
class PageRenderer(Protocol):
    """The part of a renderer that the agent uses (`render.RenderPool` or its remote client)."""

    def submit(self, memory: str) -> Future[MemoryPage]: ...


@dataclasses.dataclass(frozen=True)
class Memory:
    """A finished memory of question q, sample g: its text, the drafts that made it, and its page."""

    q: int
    g: int
    text: str
    drafts: tuple[Turn, ...]
    page: MemoryPage | None = None

    @property
    def readable(self) -> bool:
        return self.page is not None and self.page.pixels is not None


@dataclasses.dataclass(frozen=True)
class PendingPages:
    """Memories whose pages are being drawn."""

    memories: Sequence[Memory]
    pages: Sequence[Future[MemoryPage]]
    stopwatch: Stopwatch

    def result(self) -> list[Memory]:
        """The memories with their pages. The time of waiting here is the time that drawing exposes.

        A page that fails is a status, never an exception.
        """
        with self.stopwatch("render_exposed"):
            pages = [page.result() for page in self.pages]
        return [dataclasses.replace(m, page=page) for m, page in zip(self.memories, pages, strict=True)]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One answer that was read from a page."""

    turn: Turn
    text: str
    """The decoded answer."""
    asked: str
    """The question or the cloze."""
    expected: tuple[str, ...]
    """Accepted answers."""

    @property
    def view_tokens(self) -> int:
        return image_tokens(self.turn.image)


@dataclasses.dataclass(frozen=True)
class ReadRequest:
    """A view of a memory's page, and the questions about it: siblings that share the view."""

    memory: Memory
    view: np.ndarray
    """u8[H, W, 3], sides multiples of 28 px"""
    questions: tuple[tuple[TurnKind, str, tuple[str, ...]], ...]
    """(kind, question, accepted answers) of each sibling."""
    label: str = ""
    """Distinguishes the random streams of several readings of one page (evaluation: the budget)."""


def most_view_windows(page: RenderSettings, budget_tokens: int, vision: VisionConfig) -> int:
    """The largest number of attention windows of a view, over all heights that a page may have."""
    heights = range(TOKEN_PX, page.max_height_px + TOKEN_PX, TOKEN_PX)
    grids = {token_grid(height, page.width_px, budget_tokens) for height in heights}
    return max(num_windows(rows * TOKEN_PX, columns * TOKEN_PX, vision) for rows, columns in grids)


@dataclasses.dataclass(frozen=True)
class Agent:
    """The memory agent over an engine and a renderer.

    `seed` and the `label` of each call (a step number, "evaluate") name the random streams.
    """

    engine: Engine
    tokenizer: Tokenizer
    renderer: PageRenderer | None
    config: AgentConfig
    seed: int
    stopwatch: Stopwatch
    templates: Templates = DEFAULT_TEMPLATES
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None

    def prompt_limits(self, samples: int, chunk_tokens: int, page: RenderSettings) -> list[PromptLimits]:
        """The largest prompts of training: drafts, full views and shrunk views.

        Args:
            samples: G, memories of a question.
            chunk_tokens: longest chunk of a document.
            page: how wide and high pages are.
        """
        config, question = self.config, self.engine.config.question_tokens
        empty = np.zeros(0, np.int32)
        prompt = draft_prompt("", empty, "", config.memory_format, self.templates)
        prefix, suffix = map(len, self.tokenizer.encode_prompt(prompt))
        new = config.draft_max_new_tokens
        limits = [PromptLimits("drafts", samples, prefix + question + chunk_tokens, suffix + new, new)]
        reduction = config.low_res_factor**2 if config.low_res_mode == "shrink" else 1
        for name, siblings, budget in (
            ("full views", 2, config.budget_tokens),
            ("shrunk views", 1, max(1, config.budget_tokens // reduction)),
        ):
            prefix, suffix = map(len, self.tokenizer.encode_prompt(read_prompt("", self.templates), [budget]))
            longest = max(question, config.gap_fill_window_chars if siblings == 2 else 0)
            windows = most_view_windows(page, budget, self.engine.model_config.vision)
            limits.append(
                PromptLimits(
                    name, siblings, prefix, suffix + longest, config.read_max_new_tokens, windows=windows
                )
            )
        return limits

    def draft_memories(
        self,
        params: nnx.State,
        examples: Sequence[QaExample],
        samples: int,
        sampling: SamplingConfig,
        label: str | int,
        start: Sequence[str] = (),
        first: int = 0,
    ) -> list[Memory]:
        """Read every document chunk by chunk; `samples` memories for each question, ordered by (q, g).

        At each chunk a question's samples are one group: they share description, question and article, and
        differ in the memory so far. `start` are the memories that the questions begin with, default none.
        `first` is the q of the first question, where these are a part of a step's.
        """
        start = start or [""] * len(examples)
        texts = {(q, g): start[q] for q in range(len(examples)) for g in range(samples)}
        drafts: dict[tuple[int, int], list[Turn]] = {key: [] for key in texts}
        for chunk in range(max((len(e.chunks) for e in examples), default=0)):
            questions = [q for q, example in enumerate(examples) if chunk < len(example.chunks)]
            groups = [
                self._draft_group(examples[q], chunk, [texts[q, g] for g in range(samples)], label)
                for q in questions
            ]
            stage = f"draft of chunk {chunk + 1}"
            with self.stopwatch("draft"):
                completions = self.engine.generate(
                    params,
                    groups,
                    self.config.draft_max_new_tokens,
                    sampling,
                    functools.partial(self.progress, stage),
                )
            for q, group, answers in zip(questions, groups, completions, strict=True):
                for g, completion in enumerate(answers):
                    turn = Turn(
                        first + q, g, TurnKind.DRAFT, group.prefix, group.suffixes[g], None, completion, chunk
                    )
                    drafts[q, g].append(turn)
                    texts[q, g] = self.tokenizer.decode(completion.tokens)
        return [Memory(first + q, g, texts[q, g], tuple(drafts[q, g])) for q, g in texts]

    def _draft_group(
        self, example: QaExample, chunk: int, memories: Sequence[str], label: str | int
    ) -> PromptGroup:
        prefix, suffixes, keys = [], [], []
        for g, memory in enumerate(memories):
            prompt = draft_prompt(
                example.question, example.chunks[chunk], memory, self.config.memory_format, self.templates
            )
            prefix, suffix = self.tokenizer.encode_prompt(prompt)
            suffixes.append(np.array(suffix, np.int32))
            keys.append(row_key(self.seed, "draft", label, example.example_id, g, chunk))
        return PromptGroup(np.array(prefix, np.int32), tuple(suffixes), tuple(keys))

    def submit_pages(self, memories: Sequence[Memory]) -> PendingPages:
        """Start drawing the memories' pages; meanwhile the device may do something else."""
        return PendingPages(
            memories, [self.renderer.submit(memory.text) for memory in memories], self.stopwatch
        )

    def render_memories(self, memories: Sequence[Memory]) -> list[Memory]:
        """The memories with their pages. A page that fails is a status, never an exception."""
        self.progress("render", 0, len(memories))
        return self.submit_pages(memories).result()

    def read_pages(
        self,
        params: nnx.State,
        examples: Sequence[QaExample],
        requests: Sequence[ReadRequest],
        sampling: SamplingConfig,
        label: str | int,
    ) -> list[Reading]:
        """Answer every question of every request, in order. Siblings of a request share its view."""
        groups = [self._read_group(examples[r.memory.q].example_id, r, label) for r in requests]
        with self.stopwatch("read"):
            completions = self.engine.generate(
                params,
                groups,
                self.config.read_max_new_tokens,
                sampling,
                functools.partial(self.progress, "read"),
            )
        readings = []
        for request, group, answers in zip(requests, groups, completions, strict=True):
            for k, ((kind, question, expected), completion) in enumerate(
                zip(request.questions, answers, strict=True)
            ):
                memory = request.memory
                turn = Turn(
                    memory.q, memory.g, kind, group.prefix, group.suffixes[k], request.view, completion
                )
                readings.append(Reading(turn, self.tokenizer.decode(completion.tokens), question, expected))
        return readings

    def _read_group(self, example_id: str, request: ReadRequest, label: str | int) -> PromptGroup:
        prefix, suffixes, keys = [], [], []
        for kind, question, _ in request.questions:
            prompt = read_prompt(question, self.templates)
            prefix, suffix = self.tokenizer.encode_prompt(prompt, [image_tokens(request.view)])
            suffixes.append(np.array(suffix, np.int32))
            keys.append(
                row_key(self.seed, "read", label, example_id, request.memory.g, str(kind), request.label)
            )
        return PromptGroup(np.array(prefix, np.int32), tuple(suffixes), tuple(keys), request.view)

    def training_requests(
        self, examples: Sequence[QaExample], memories: Sequence[Memory], label: str | int
    ) -> list[ReadRequest]:
        """The three readings of every readable memory: std and augQ on one view, augM on the shrunk one."""
        requests = []
        for memory in memories:
            if not memory.readable:
                continue
            example, pixels, config = examples[memory.q], memory.page.pixels, self.config
            question = (TurnKind.QA, example.question, example.answers)
            full = (question,)
            if cloze := self.gap_fill(example.example_id, memory, label):
                full += ((TurnKind.GAP_FILL, cloze.question, (cloze.answer,)),)
            low_res = (TurnKind.QA_LOWRES, example.question, example.answers)
            shrunk = degrade(pixels, config.budget_tokens, config.low_res_factor, config.low_res_mode)
            requests.append(ReadRequest(memory, fit(pixels, config.budget_tokens), full))
            requests.append(ReadRequest(memory, shrunk, (low_res,)))
        return requests

    def gap_fill(self, example_id: str, memory: Memory, label: str | int) -> GapFill | None:
        """The cloze over a memory's text, drawn from its own stream; None when it has too few words."""
        rng = host_rng(self.seed, "gap_fill", label, example_id, memory.g)
        return make_gap_fill(
            memory.text,
            rng,
            self.config.gap_fill_window_chars,
            self.config.gap_fill_blanks,
            self.config.memory_format,
            self.templates,
        )
