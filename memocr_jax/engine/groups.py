"""The engine's input: groups of prompts that share a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from memocr_jax.config import SamplingConfig
from memocr_jax.core.errors import UserError
from memocr_jax.models.images import Image


@dataclasses.dataclass(frozen=True)
class PromptGroup:
    """One shared prefix and the K prompts that continue it."""

    prefix: np.ndarray
    """i32[P]"""
    suffixes: tuple[np.ndarray, ...]
    """K arrays i32[S >= 1]"""
    keys: tuple[np.ndarray, ...]
    """K random keys u32[2], one for each sibling (`rng.row_key`)."""
    image: Image | None = None
    """An image inside the prefix."""
    images: tuple[Image, ...] = ()
    """The prefix's images in order of appearance, where there are several (instead of `image`)."""
    suffix_images: tuple[tuple[Image, ...], ...] = ()
    """The images of each sibling's own part; empty when none has any."""
    sampling: SamplingConfig | None = None
    """How these siblings are sampled, default as the call says."""
    max_new_tokens: int | None = None
    """Longest completion, default as the call says."""

    @property
    def prefix_images(self) -> tuple[Image, ...]:
        return self.images if self.image is None else (self.image, *self.images)

    @property
    def own_images(self) -> tuple[tuple[Image, ...], ...]:
        """The images of each of the K siblings."""
        return self.suffix_images or ((),) * len(self.suffixes)

    @property
    def all_images(self) -> list[Image]:
        """The images of the prefix, then those of the siblings."""
        return [*self.prefix_images, *(image for own in self.own_images for image in own)]


def check_groups(groups: Sequence[PromptGroup]) -> None:
    """Raise UserError for a group that nothing can be sampled for."""
    for i, group in enumerate(groups):
        siblings = len(group.suffixes)
        if not siblings or min(map(len, group.suffixes)) < 1:
            raise UserError(
                f"prompt group {i} has {siblings} siblings of {[len(s) for s in group.suffixes]} own tokens; "
                "each sibling needs at least 1 (move the prefix's last token into the siblings)"
            )
        for name, value in {"keys": group.keys, "suffix_images": group.own_images}.items():
            if len(value) != siblings:
                raise UserError(f"prompt group {i} has {len(value)} {name} for {siblings} siblings")
