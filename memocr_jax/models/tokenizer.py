"""Turns text into token ids and back, for Qwen's tokenizers and the project's own small one.

It reads `tokenizer.json` with the `tokenizers` library and does not import transformers, which starts slowly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as _Backend

from memocr_jax.core.errors import UserError
from memocr_jax.models.prompt import Image, Prompt, Special, Text, TokenIds, Tokens

SMALL_TOKENIZER = Path(__file__).parents[1] / "assets" / "tokenizer"
"""The project's own tokenizer (`python -m memocr_jax.build_tokenizer` makes it)."""

CONTROL_TOKENS = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad")
"""Control tokens a tokenizer must have: <|NAME|>."""


class Tokenizer:
    """A byte-level BPE with Qwen's control tokens.

    Attributes (ids are ints): vocab_size (largest id + 1), pad_id, eos_ids (im_end, endoftext), im_start_id,
    im_end_id, vision_start_id, vision_end_id, image_pad_id.
    """

    def __init__(self, tokenizer_json: str, source: str = "tokenizer.json"):
        """Read the contents of a `tokenizer.json`; `source` names it in errors (`UserError`)."""
        try:
            self._full = _Backend.from_str(tokenizer_json)
            # Without added tokens a document's "<|im_end|>" cannot be mistaken for the real one.
            self._plain = _Backend.from_str(json.dumps({**json.loads(tokenizer_json), "added_tokens": []}))
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise UserError(f"tokenizer.path: {source} is not a tokenizer.json ({error})") from None
        self._ids = {name: self._full.token_to_id(f"<|{name}|>") for name in CONTROL_TOKENS}
        missing = [f"<|{name}|>" for name, token_id in self._ids.items() if token_id is None]
        if missing:
            raise UserError(
                f"tokenizer.path: {source} has no {', '.join(missing)}; use a tokenizer of the Qwen2.5 family"
            )
        self.vocab_size: int = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        self.im_start_id: int = self._ids["im_start"]
        self.im_end_id: int = self._ids["im_end"]
        self.vision_start_id: int = self._ids["vision_start"]
        self.vision_end_id: int = self._ids["vision_end"]
        self.image_pad_id: int = self._ids["image_pad"]
        self.pad_id: int = self._ids["endoftext"]
        self.eos_ids: tuple[int, ...] = (self.im_end_id, self.pad_id)
        self.source = source

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; names of control tokens inside it stay ordinary characters."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: TokenIds, skip_special: bool = True) -> str:
        """Text of `ids`. Broken UTF-8 becomes U+FFFD; ids the tokenizer does not know are left out."""
        return self._full.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def encode_prompt(
        self, prompt: Prompt, image_token_counts: Sequence[int] = ()
    ) -> tuple[list[int], list[int]]:
        """Ids of the shared prefix and of the rest; image i takes `image_token_counts[i]` placeholders."""
        ids = [self._piece(piece, image_token_counts) for piece in prompt.pieces]
        cut = prompt.prefix_pieces
        return [i for piece in ids[:cut] for i in piece], [i for piece in ids[cut:] for i in piece]

    def _piece(self, piece: Text | Special | Tokens | Image, image_token_counts: Sequence[int]) -> list[int]:
        match piece:
            case Text(text):
                return self.encode(text)
            case Special(name):
                return [self._ids[name]]
            case Tokens(ids):
                return [int(i) for i in ids]
            case Image(index):
                return [self.image_pad_id] * int(image_token_counts[index])


def load_tokenizer(path: str = "") -> Tokenizer:
    """Load a tokenizer from a directory (or a `tokenizer.json`); "" is the project's small one.

    Raises `UserError` when there is none or when it lacks Qwen's control tokens.
    """
    place = Path(path) if path else SMALL_TOKENIZER
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise UserError(
            f"tokenizer.path: no tokenizer.json in {str(place)!r}; give the folder that holds one"
        )
    try:
        return Tokenizer(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise UserError(f"tokenizer.path: {str(file)!r} is not UTF-8 text") from None
