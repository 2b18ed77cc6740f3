"""Reads a document into a memory, and answers questions from the memory's page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memocr_jax.agent.agent import Agent, Memory, ReadRequest
from memocr_jax.agent.answers import boxed_answer
from memocr_jax.agent.prompts import MemoryFormat
from memocr_jax.config import SamplingConfig, from_tree
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import QaExample, TurnKind
from memocr_jax.data.contexts import split_chunks
from render.files import write_atomically
from render.types import MemoryPage
from render.views import fit

if TYPE_CHECKING:
    from flax import nnx

Progress = Callable[[int, int], None]
"""Called with (chunks read, chunks in total)."""

MEMORY_KIND = "memocr memory 1"
"""Marks a file as one of a memory."""


@dataclasses.dataclass(frozen=True)
class Document:
    """What is kept of a document: the memory, and what is needed to continue with it."""

    text: str = ""
    """The memory itself, Markdown or HTML."""
    question: str = ""
    """The question that it was drafted for; empty means any question."""
    memory_format: MemoryFormat = "markdown"
    chunks: int = 0
    """Chunks read so far."""
    tokens: int = 0
    """Tokens read so far."""

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises UserError when that is impossible."""
        path = Path(path)
        text = json.dumps({"kind": MEMORY_KIND, **dataclasses.asdict(self)}, ensure_ascii=False, indent=1)
        try:
            write_atomically(path, text + "\n")
        except OSError as error:
            raise UserError(f"{path}: the memory cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path) -> Document:
        """Read what `save` wrote. Raises UserError for anything else."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: the memory cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON; name a file that --save-memory wrote") from error
        if not isinstance(tree, dict) or tree.pop("kind", None) != MEMORY_KIND:
            raise UserError(f"{path}: its kind is not {MEMORY_KIND!r}; name a file that --save-memory wrote")
        return from_tree(cls, tree, str(path))


@dataclasses.dataclass(frozen=True)
class PageAnswer:
    """An answer that was read from a page; as a string, the answer alone."""

    text: str
    """The contents of the last box, or the whole reply where there is none."""
    reply: str
    """Everything the model wrote."""
    image_tokens: int
    """Visual tokens of the view that it saw."""
    new_tokens: int
    """Tokens it wrote."""

    def __str__(self) -> str:
        return self.text


def read_document(
    agent: Agent,
    params: nnx.State,
    document: Document,
    text: str,
    chunk_tokens: int,
    sampling: SamplingConfig,
    progress: Progress = lambda done, total: None,
) -> Document:
    """The document with `text` read into its memory, one drafting turn for each chunk.

    Drafts depend on the seed, the memory so far and the number of the chunk, not on the number of calls that
    a text is cut into (between chunks). Raises UserError for an empty text.
    """
    tokens = np.asarray(agent.tokenizer.encode(text), np.int32)
    if not text.strip():
        raise UserError("the document is empty: there is nothing to read")
    chunks = split_chunks(tokens, chunk_tokens)
    question = document.question or agent.templates.any_question
    for number, chunk in enumerate(chunks):
        progress(number, len(chunks))
        turn = QaExample("document", question, (chunk,), ())
        memories = agent.draft_memories(params, [turn], 1, sampling, document.chunks, [document.text])
        document = dataclasses.replace(
            document,
            text=memories[0].text,
            chunks=document.chunks + 1,
            tokens=document.tokens + len(chunk),
        )
    progress(len(chunks), len(chunks))
    return document


def ask_page(
    agent: Agent,
    params: nnx.State,
    page: MemoryPage,
    questions: Sequence[str],
    budget_tokens: int,
    sampling: SamplingConfig,
) -> list[PageAnswer]:
    """Answers to questions about one view of a page; they share the view's computation."""
    asked = tuple((TurnKind.QA, question, ()) for question in questions)
    request = ReadRequest(Memory(0, 0, "", (), page), view(page, budget_tokens), asked)
    example = QaExample("document", "", (), ())
    readings = agent.read_pages(params, [example], [request], sampling, "ask")
    return [
        PageAnswer(
            boxed_answer(reading.text) or reading.text.strip(),
            reading.text,
            reading.view_tokens,
            len(reading.turn.completion.tokens),
        )
        for reading in readings
    ]


def view(page: MemoryPage, budget_tokens: int) -> np.ndarray:
    """The page as an image u8[H, W, 3] of at most `budget_tokens` visual tokens. Raises UserError."""
    if budget_tokens < 1:
        raise UserError(f"budget is {budget_tokens} visual tokens; the smallest that works is 1")
    if page.pixels is None:
        raise UserError(f"the memory could not be drawn: {page.status} ({page.detail})")
    return fit(page.pixels, budget_tokens)
