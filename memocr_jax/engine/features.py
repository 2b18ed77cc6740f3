"""Image features: computed once in a call, and kept while a group that shows the image waits."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from memocr_jax.engine.sizes import Kind
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import Image, image_grid
from memocr_jax.models.packing import PlacedImage

Encode = Callable[[Sequence[Image], int, int], tuple[tuple[jax.Array, ...], list[np.ndarray]]]
"""(images, windows, size of the batch) -> the features [slots, D] of each image, and the slot of each of its
tokens in them."""


@dataclasses.dataclass(frozen=True)
class KeyedImage:
    """An image of a group, and its identity."""

    content: Image
    key: bytes
    """Its `images.image_hash`."""


@dataclasses.dataclass
class _Features:
    array: jax.Array
    """[slots, D]"""
    slots: np.ndarray
    """i32[M], the slot of each of its tokens"""


class ImageFeatures:
    """Features of the images that groups show. Equal images share their features, also across groups."""

    def __init__(self, encode: Encode, config: Qwen25VLConfig):
        self._encode, self._config = encode, config
        self._known: dict[tuple[bytes, int], _Features] = {}
        """By the image's key and the windows of its padded layout."""
        self._uses: collections.Counter[bytes] = collections.Counter()

    def expect(self, images: Sequence[KeyedImage]) -> None:
        """A group with these images waits."""
        self._uses.update(image.key for image in images)

    def release(self, images: Sequence[KeyedImage]) -> None:
        """A group with these images no longer needs them."""
        self._uses.subtract(image.key for image in images)
        for key in list(self._known):
            if self._uses[key[0]] <= 0:
                del self._known[key]

    def arrays(self, groups: Sequence[Sequence[KeyedImage]], size: int, kind: Kind) -> list[jax.Array]:
        """The features of a prefill's images: `kind.images` arrays for each of `size` groups."""
        if not kind.images:
            return []
        self._compute(groups, kind)
        arrays = []
        padding = self._known[groups[0][0].key, kind.windows].array
        for images in groups:
            own = [self._known[image.key, kind.windows].array for image in images]
            arrays += own + [padding] * (kind.images - len(own))
        return arrays + [padding] * (size * kind.images - len(arrays))

    def placed(self, images: Sequence[KeyedImage], group: int, kind: Kind) -> list[PlacedImage]:
        """Where the images of a prefill's group number `group` are, as `arrays` arranges them."""
        placed = []
        for i, image in enumerate(images):
            features = self._known[image.key, kind.windows]
            first = (group * kind.images + i) * features.array.shape[0]
            grid = image_grid(image.content, self._config.vision)
            placed.append(PlacedImage(first + features.slots, grid))
        return placed

    def padding(self, kind: Kind, size: int) -> jax.Array:
        """Features of no image, from a batch of `size`: to run the program once."""
        return self._encode([], kind.windows, size)[0][0]

    def _compute(self, groups: Sequence[Sequence[KeyedImage]], kind: Kind) -> None:
        """Run the images through the vision tower whose features are not known yet."""
        missing = {
            image.key: image.content
            for images in groups
            for image in images
            if (image.key, kind.windows) not in self._known
        }
        todo, sizes = list(missing.items()), kind.prefill_groups
        while todo:
            count = next((size for size in sizes if size <= len(todo)), sizes[-1])
            batch, todo = todo[:count], todo[count:]
            arrays, slots = self._encode([image for _, image in batch], kind.windows, count)
            for (key, _), array, slot in zip(batch, arrays, slots, strict=False):
                self._known[key, kind.windows] = _Features(array, slot)
