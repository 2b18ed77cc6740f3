"""`MemoryAgent`: read a long document into a memory, and ask questions about it.

import memocr_jax
with memocr_jax.MemoryAgent("runs/tiny") as agent:
    agent.read(text)
    print(agent.ask("Who wrote it?", budget=64))
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from memocr_jax.agent.document import Document, PageAnswer, Progress, ask_page, read_document, view
from memocr_jax.agent.open import open_model
from memocr_jax.config import SamplingConfig
from memocr_jax.core.errors import UserError
from render import open_renderer
from render.types import MemoryPage


class MemoryAgent:
    """Reads a document into a memory, and answers questions from the memory's page.

    with MemoryAgent("runs/tiny") as agent:
        agent.read(text, question="Who wrote it?")
        agent.append(more)
        print(agent.ask("Who wrote it?", budget=64))
        agent.save("notes.json")
    """

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        **options: Any,
    ):
        """Open a model.

        Args:
            path_or_id, options: as `open_model` takes them.
            temperature, top_p: of sampling; temperature 0 is greedy. Default: as it is evaluated.

        Raises:
            UserError: as `open_model`.
        """
        self.model = open_model(path_or_id, **options)
        config = self.model.config
        self.sampling = SamplingConfig(
            temperature=config.eval.temperature if temperature is None else temperature,
            top_p=config.eval.top_p if top_p is None else top_p,
        )
        require_sampling(self.sampling)
        self.document = Document(memory_format=config.agent.memory_format)
        """The document that has been read."""
        self._renderer: Any = None
        self._agent = self.model.agent(self.model.engine(), self)

    @property
    def memory(self) -> str:
        """The text of the memory, empty when nothing was read."""
        return self.document.text

    def read(self, text: str, question: str = "", progress: Progress = lambda done, total: None) -> str:
        """Read a new document and return its memory; the one before is forgotten.

        `question` tells the model what to look for, as in training; without it, the memory is a general one.
        Raises UserError for an empty text.
        """
        config = self.model.config
        fresh = Document(question=question, memory_format=config.agent.memory_format)
        self.document = self._read(fresh, text, progress)
        return self.memory

    def append(self, text: str, progress: Progress = lambda done, total: None) -> str:
        """Read `text`, which continues what was read before. Returns the new memory."""
        self.document = self._read(self.document, text, progress)
        return self.memory

    def ask(self, question: str, budget: int | None = None) -> PageAnswer:
        """Answer from the memory's page, seen at `budget` visual tokens (default: the model's own).

        Raises UserError when nothing was read, the page cannot be drawn or the budget is below 1.
        """
        budget = self.model.config.agent.budget_tokens if budget is None else budget
        return ask_page(self._agent, self.model.params, self.page(), [question], budget, self.sampling)[0]

    def page(self) -> MemoryPage:
        """The memory's page as drawn, before any budget. Raises UserError when nothing was read."""
        if not self.document.chunks:
            raise UserError("nothing was read yet: call read(text), or load(file)")
        return self.submit(self.memory).result()

    def page_image(self, budget: int | None = None) -> np.ndarray:
        """The page as the model sees it: u8[H, W, 3], at most `budget` visual tokens."""
        return view(self.page(), self.model.config.agent.budget_tokens if budget is None else budget)

    def save(self, path: str | Path) -> None:
        """Write the memory to a file (JSON). Raises UserError when that is impossible."""
        self.document.save(path)

    def load(self, path: str | Path) -> None:
        """Continue with a memory that `save` wrote. Raises UserError for any other file."""
        document = Document.load(path)
        own = self.model.config.agent.memory_format
        if document.memory_format != own:
            raise UserError(
                f"{path}: the memory is {document.memory_format}, the model writes {own}; "
                "set agent.memory_format, or use the model that wrote it"
            )
        self.document = document

    def submit(self, memory: str) -> Future[MemoryPage]:
        """The page of a memory. The renderer starts when it is first needed: reading needs none."""
        config = self.model.config
        if self._renderer is None:
            settings = dataclasses.replace(config.render, workers=config.render.workers or 1)
            self._renderer = open_renderer(settings, config.agent.memory_format)
        return self._renderer.submit(memory)

    def close(self) -> None:
        """Close the renderer. May be called again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> MemoryAgent:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _read(self, document: Document, text: str, progress: Progress) -> Document:
        chunk_tokens = self.model.config.data.chunk_tokens
        return read_document(
            self._agent, self.model.params, document, text, chunk_tokens, self.sampling, progress
        )


def require_sampling(sampling: SamplingConfig) -> None:
    """Raise UserError for values that cannot be sampled with."""
    if not 0 <= sampling.temperature <= 100:
        raise UserError(
            f"temperature is {sampling.temperature}; use 0 (greedy) or a value up to 100, such as 1"
        )
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p is {sampling.top_p}; use a probability above 0 and at most 1")
