"""The memories that a server keeps, in main memory and, when there is a folder for them, as files."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import time
from pathlib import Path
from typing import Any

from memocr_jax.agent.document import Document
from memocr_jax.core.errors import UserError

_ID = re.compile(r"mem_[0-9a-f]{24}")


@dataclasses.dataclass(eq=False)
class Stored:
    """A memory of the server."""

    id: str
    created: int
    document: Document
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    """Held while a text is being read into it, so that texts are read one after the other."""

    def record(self) -> dict[str, Any]:
        """The object that clients get."""
        document = self.document
        return {
            "id": self.id,
            "object": "memory",
            "created": self.created,
            "text": document.text,
            "question": document.question,
            "format": document.memory_format,
            "chunks": document.chunks,
            "document_tokens": document.tokens,
        }


class MemoryStore:
    """Memories by id, bounded in number. Used by the event loop's thread alone."""

    def __init__(self, most: int, folder: str = ""):
        """Raises UserError when `folder` cannot be made or holds a file that is no memory."""
        self.most = most
        self._folder = Path(folder) if folder else None
        self._memories: dict[str, Stored] = {}
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            files = sorted(self._folder.glob("mem_*.json"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            raise UserError(f"--memory-dir {folder}: cannot be used ({error.strerror})") from error
        for path in files:
            if _ID.fullmatch(path.stem):
                created = int(path.stat().st_mtime)
                self._memories[path.stem] = Stored(path.stem, created, Document.load(path))

    def __len__(self) -> int:
        return len(self._memories)

    @property
    def full(self) -> bool:
        return len(self._memories) >= self.most

    def all(self) -> list[Stored]:
        """Oldest first."""
        return list(self._memories.values())

    def get(self, memory_id: str) -> Stored | None:
        return self._memories.get(memory_id)

    def add(self, document: Document) -> Stored:
        """Keep a new memory."""
        stored = Stored(f"mem_{secrets.token_hex(12)}", int(time.time()), document)
        self._write(stored.id, document)
        self._memories[stored.id] = stored
        return stored

    def replace(self, stored: Stored, document: Document) -> None:
        """Keep a changed memory."""
        self._write(stored.id, document)
        stored.document = document

    def remove(self, stored: Stored) -> None:
        del self._memories[stored.id]
        if self._folder is not None:
            (self._folder / f"{stored.id}.json").unlink(missing_ok=True)

    def _write(self, memory_id: str, document: Document) -> None:
        if self._folder is not None:
            document.save(self._folder / f"{memory_id}.json")
