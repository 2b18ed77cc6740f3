"""A user's own examples: JSON lines of conversations with images, as turns to train on.

A line is {"messages": [{"role": "user", "content": [...]}, ..., {"role": "assistant", "content": "..."}]} in
the layout that OpenAI's and Hugging Face's chat tools write: content is a text or a list of parts,
{"type": "text", "text": ...} and {"type": "image", "image": PATH} (or "url", "path", or OpenAI's
"image_url"). Paths are relative to the file. The last message is the assistant's and is what is taught; the
rest is the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from memocr_jax.agent.prompts import chat_prompt
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import TurnKind
from memocr_jax.data.rows import BadRow, Description, checked_json, good_rows, json_lines
from memocr_jax.models.image_files import read_image
from memocr_jax.models.tokenizer import Tokenizer
from memocr_jax.sft.lessons import Taught, taught_turn
from render.views import fit, image_tokens


def _address(value: Any) -> Any:
    return value.get("url") if isinstance(value, Mapping) else value


def _parts(content: Any) -> Any:
    return [{"text": content}] if isinstance(content, str) else content


Source = Annotated[str | None, BeforeValidator(_address)]


class _Part(Description):
    """A text or an image; tools that write tables fill the fields of the other kind with null."""

    text: str | None = None
    image: Source = None
    image_url: Source = None
    url: Source = None
    path: Source = None

    @property
    def source(self) -> str | None:
        """Path or data URL of the image, None for a text."""
        return self.image or self.image_url or self.url or self.path

    @model_validator(mode="after")
    def _is_something(self) -> _Part:
        if self.text is None and self.source is None:
            raise PydanticCustomError("part", "a part that is no text and no image")
        return self


class _Message(Description):
    role: str
    content: Annotated[list[_Part], BeforeValidator(_parts)]


class _Conversation(Description):
    messages: Annotated[list[_Message], Field(min_length=2)]

    @property
    def images(self) -> list[str]:
        return [part.source for message in self.messages for part in message.content if part.source]

    @property
    def answer(self) -> str:
        return "".join(part.text for part in self.messages[-1].content)


def _parse(line: bytes) -> _Conversation:
    conversation = checked_json(_Conversation, line)
    last = conversation.messages[-1]
    field = f"messages[{len(conversation.messages) - 1}]"
    if last.role != "assistant":
        raise BadRow(f"{field}.role", f"{last.role!r}, but the last message must be the assistant's")
    if any(part.source for part in last.content) or not conversation.answer.strip():
        raise BadRow(f"{field}.content", "the assistant's last message must be a text that is not blank")
    if len(conversation.images) > 1:
        raise BadRow("messages", f"{len(conversation.images)} images; a conversation may have one")
    return conversation


class Conversations:
    """The conversations of a JSON lines file; `rows(numbers)` makes the turns of some of them.

    Args:
        path: of the file.
        budget_tokens: most visual tokens of an image.

    Raises UserError for a file that cannot be read, and for a line that is no such conversation, naming the
    line and the field.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer, budget_tokens: int, max_tokens: int):
        self._path, self._tokenizer = Path(path), tokenizer
        self._budget, self._max_tokens = budget_tokens, max_tokens
        lines = json_lines(str(path), "warmup.data")
        self._conversations = list(good_rows(str(path), lines, _parse, True, []))
        if not self._conversations:
            raise UserError(f"warmup.data: {str(path)!r} holds no conversation")

    def __len__(self) -> int:
        return len(self._conversations)

    def rows(self, numbers: Sequence[int]) -> list[list[Taught]]:
        """One row for each conversation."""
        return [[self._taught(*self._conversations[i])] for i in numbers]

    def _taught(self, line: int, conversation: _Conversation) -> Taught:
        where = f"{self._path}:{line}"
        images = conversation.images
        view = fit(self._image(images[0], where), self._budget) if images else None
        counts = [] if view is None else [image_tokens(view)]
        messages = [
            (message.role, [None if part.source else part.text for part in message.content])
            for message in conversation.messages[:-1]
        ]
        prefix, suffix = self._tokenizer.encode_prompt(chat_prompt(messages), counts)
        completion = [*self._tokenizer.encode(conversation.answer), self._tokenizer.im_end_id]
        length = len(prefix) + len(suffix) + len(completion)
        if length > self._max_tokens:
            raise UserError(
                f"{where}: {length} tokens, more than train.max_row_tokens {self._max_tokens}; raise that or "
                "shorten the conversation"
            )
        return Taught(taught_turn(prefix, suffix, completion, TurnKind.QA, view), "memory")

    def _image(self, source: str, where: str) -> np.ndarray:
        is_data = source[:5].lower() == "data:"
        try:
            return read_image(source if is_data else self._path.parent / source.removeprefix("file://"))
        except UserError as error:
            raise UserError(f"{where}: image {source[:80]!r}: {error}") from None
