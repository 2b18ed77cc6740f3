"""A user's own examples: JSON lines of conversations with images, as turns to train on.

A line is {"messages": [{"role": "user", "content": [...]}, ..., {"role": "assistant", "content": "..."}]} in
the layout that OpenAI's and Hugging Face's chat tools write: content is a text or a list of parts,
{"type": "text", "text": ...} and {"type": "image", "image": PATH} (or "url", "path", or OpenAI's
"image_url"). Paths are relative to the file. The last message is the assistant's and is what is taught; the
rest is the prompt.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memocr_jax.agent.prompts import chat_prompt
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import TurnKind
from memocr_jax.models.tokenizer import Tokenizer
from memocr_jax.sft.lessons import Taught, taught_turn
from render.views import fit, image_tokens


class Conversations:
    """The conversations of a JSON lines file; `rows(numbers)` makes the turns of some of them.

    Args:
        path: of the file.
        budget_tokens: most visual tokens of an image.

    Raises UserError for a file that cannot be read, and for a line that is no such conversation, naming it.
    """

    def __init__(self, path: str | Path, tokenizer: Tokenizer, budget_tokens: int, max_tokens: int):
        self._path, self._tokenizer = Path(path), tokenizer
        self._budget, self._max_tokens = budget_tokens, max_tokens
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"warmup.data {path}: cannot be read ({error}); give a JSON lines file"
            ) from error
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not self._lines:
            raise UserError(f"warmup.data {path}: holds no conversation")
        for number, line in self._lines:
            self._parse(number, line)

    def __len__(self) -> int:
        return len(self._lines)

    def rows(self, numbers: Sequence[int]) -> list[list[Taught]]:
        """One row for each conversation."""
        return [[self._taught(*self._lines[i])] for i in numbers]

    def _taught(self, number: int, line: str) -> Taught:
        messages, answer, images = self._parse(number, line)
        where = f"{self._path}:{number}"
        view = fit(self._image(images[0], where), self._budget) if images else None
        counts = [] if view is None else [image_tokens(view)]
        prefix, suffix = self._tokenizer.encode_prompt(chat_prompt(messages), counts)
        completion = [*self._tokenizer.encode(answer), self._tokenizer.im_end_id]
        length = len(prefix) + len(suffix) + len(completion)
        if length > self._max_tokens:
            raise UserError(
                f"{where}: {length} tokens, more than train.max_row_tokens {self._max_tokens}; raise that or "
                "shorten the conversation"
            )
        return Taught(taught_turn(prefix, suffix, completion, TurnKind.QA, view), "memory")

    def _parse(self, number: int, line: str):
        """(messages as `chat_prompt` takes them, the taught answer, image sources)."""
        where = f"{self._path}:{number}"
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{where}: not a JSON object with "messages"') from None
        if not isinstance(messages, list) or len(messages) < 2:
            raise UserError(f"{where}: messages must be a list of at least two, the last the assistant's")
        parsed, images = [], []
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UserError(f"{where}: messages[{i}] has no role; use system, user or assistant")
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(parts, list):
                raise UserError(f"{where}: messages[{i}].content must be a text or a list of parts")
            texts: list[str | None] = []
            for part in parts:
                source = _image_source(part)
                if source is not None:
                    images.append(source)
                    texts.append(None)
                elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                    texts.append(part["text"])
                else:
                    raise UserError(f"{where}: messages[{i}].content has a part that is no text and no image")
            parsed.append((message["role"], texts))
        role, answer = parsed[-1]
        if role != "assistant" or None in answer or not "".join(answer).strip():
            raise UserError(f"{where}: the last message must be the assistant's, and text")
        if len(images) > 1:
            raise UserError(f"{where}: {len(images)} images; a conversation may have one")
        return parsed[:-1], "".join(answer), images

    def _image(self, source: str, where: str) -> np.ndarray:
        from PIL import Image

        try:
            if source.startswith("data:"):
                file: Any = io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True))
            else:
                file = self._path.parent / source.removeprefix("file://")
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, binascii.Error, Image.DecompressionBombError) as error:
            raise UserError(f"{where}: image {source[:80]!r} cannot be read ({error})") from error


def _image_source(part: Any) -> str | None:
    """Path or data URL of an image part, None for other parts."""
    if not isinstance(part, Mapping):
        return None
    for name in ("image", "image_url", "url", "path"):
        value = part.get(name)
        value = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            return value
    return None
