"""A prompt as pieces, independent of the tokenizer; `Tokenizer.encode_prompt` turns them into token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

TokenIds = Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Text:
    """Plain text; special tokens inside it are only characters."""

    text: str


@dataclasses.dataclass(frozen=True)
class Special:
    """A control token by its bare name: `im_start` stands for <|im_start|>."""

    name: str


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids taken as they are (a chunk of the document)."""

    ids: TokenIds


@dataclasses.dataclass(frozen=True)
class Image:
    """The placeholder tokens of image number `index`, without the vision start and end tokens."""

    index: int


Piece = Text | Special | Tokens | Image


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation up to the assistant's turn; the first `prefix_pieces` pieces are the shared prefix."""

    pieces: tuple[Piece, ...]
    prefix_pieces: int
