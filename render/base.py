"""The interface of renderers: memories in, pages out, here or on another machine."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Self

from render.types import MemoryPage, Mode


class Renderer(abc.ABC):
    """Draws memories, in order (`render`) or as futures (`submit`). A context manager; else `close` it."""

    @abc.abstractmethod
    def submit(
        self, memory: str, *, mode: Mode | None = None, width_px: int | None = None
    ) -> Future[MemoryPage]:
        """Future page of one memory; `mode` and `width_px` replace the renderer's own for this memory."""

    @abc.abstractmethod
    def close(self) -> None:
        """Drop unfinished work, and release everything that was opened."""

    def render(self, memories: Sequence[str]) -> list[MemoryPage]:
        """One page per memory, in order."""
        return [future.result() for future in [self.submit(memory) for memory in memories]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
