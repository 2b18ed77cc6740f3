"""Turns conversations with images into the arrays a Qwen2.5-VL takes, as transformers' processor does.

transformers' own `Qwen2_5_VLProcessor` needs torch and torchvision; this one needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.image_files import Source, read_image
from memocr_jax.models.images import ImageSettings, grid_tokens, prepare_image, resize

IMAGE_TOKEN = "<|image_pad|>"


class Processor:
    """Tokenizer, chat template and image preparation of one checkpoint directory.

    Attributes:
        tokenizer: transformers' tokenizer of the directory.
        image_settings: sizes and normalisation of images.
    """

    def __init__(self, directory: str | Path, config: Qwen25VLConfig):
        """Raises UserError when the directory holds no tokenizer."""
        from transformers import AutoTokenizer

        directory = Path(directory)
        if not (directory / "tokenizer.json").is_file() and not (directory / "vocab.json").is_file():
            raise UserError(f"{directory} holds no tokenizer (tokenizer.json)")
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.image_settings = ImageSettings.from_dict(read_json(directory / "preprocessor_config.json"))
        template = read_json(directory / "chat_template.json").get("chat_template")
        self.chat_template: str | None = template or self.tokenizer.chat_template

    def apply_chat_template(self, messages: Sequence[Any], add_generation_prompt: bool = False) -> str:
        """The conversation as text; an image is one placeholder.

        `messages` are {"role", "content"}, the content a text or parts {"type": "text", "text"} and
        {"type": "image"}.
        """
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def __call__(
        self,
        text: str | Sequence[str],
        images: Sequence[Source] | None = None,
        padding_side: Literal["left", "right"] = "left",
        **unsupported: Any,
    ) -> dict[str, np.ndarray]:
        """Arrays for `memocr_jax.logits` and `generate`, the same as transformers' processor returns.

        Args:
            text: one or several prompts, with one `<|image_pad|>` per image.
            images: in the order of their placeholders over all prompts; whatever `read_image` reads.
            padding_side: where shorter prompts are padded.

        Returns:
            input_ids, attention_mask, mm_token_type_ids i64[B, L]; with images also pixel_values
            f32[N, features] and image_grid_thw i64[images, 3] (1, rows, columns in patches).

        Raises:
            UserError: a video, or placeholders that do not match the images.
        """
        for name, value in unsupported.items():
            if value is not None:
                kind = "videos are not supported" if "video" in name else "no such argument"
                raise UserError(f"processor: {name} was given: {kind}")
        texts = [text] if isinstance(text, str) else list(text)
        prepared = [self._prepare(image) for image in images or ()]
        grids = [grid for _, grid in prepared]
        rows = self.tokenizer(self._expand(texts, grids))["input_ids"]
        length = max(map(len, rows))
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for row, tokens in enumerate(rows):
            span = slice(length - len(tokens), length) if padding_side == "left" else slice(0, len(tokens))
            ids[row, span], mask[row, span] = tokens, 1
        image_types = (ids == self.config.image_token_id).astype(np.int64)
        batch = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": image_types}
        if prepared:
            batch["pixel_values"] = np.concatenate([patches for patches, _ in prepared])
            batch["image_grid_thw"] = np.array([(1, *grid) for grid in grids], np.int64)
        return batch

    def _prepare(self, image: Source) -> tuple[np.ndarray, tuple[int, int]]:
        resized = resize(read_image(image), self.config.vision, self.image_settings)
        return prepare_image(resized, self.config.vision, self.image_settings)

    def _expand(self, texts: list[str], grids: list[tuple[int, int]]) -> list[str]:
        """Every placeholder repeated to the number of tokens of its image."""
        counts = [grid_tokens(grid, self.config.vision) for grid in grids]
        placeholders = sum(text.count(IMAGE_TOKEN) for text in texts)
        if placeholders != len(counts):
            raise UserError(
                f"the text has {placeholders} image placeholders, but {len(counts)} images are given"
            )
        if any("<|video_pad|>" in text for text in texts):
            raise UserError("the text has a video placeholder; videos are not supported")
        remaining = iter(counts)
        expanded = []
        for text in texts:
            first, *rest = text.split(IMAGE_TOKEN)
            expanded.append(first + "".join(IMAGE_TOKEN * next(remaining) + piece for piece in rest))
        return expanded


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
