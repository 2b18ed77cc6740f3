"""Kinds of prompts, the few sizes that programs are compiled for, and what fits into the cache's memory."""

from __future__ import annotations

import dataclasses
import math

from memocr_jax.config import EngineConfig
from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from memocr_jax.engine.groups import PromptGroup
from memocr_jax.models.config import Qwen25VLConfig

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class PromptLimits:
    """The largest prompts of one kind that will be asked for, in tokens."""

    name: str
    siblings: int
    """K, siblings of a group."""
    prefix_tokens: int
    suffix_tokens: int
    """Longest own part of a sibling's prompt."""
    max_new_tokens: int
    windows: int = 0
    """Attention windows of the largest image (`images.num_windows`); 0 means no images."""
    images: int = 1
    """Images of a group, where there are any."""
    groups: int = 0
    """Most groups in a call; 0 means engine.groups."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of prompts with every size that its programs have."""

    name: str
    siblings: int
    prefix: int
    """Slots of a group's prefix in the cache."""
    suffix: int
    """Most slots of a sibling's own prompt."""
    max_new_tokens: int
    windows: int
    images: int
    """Image rows of a group in prefill; 0 without images."""
    pools: tuple[tuple[int, int], ...]
    """(rows, groups) that are decoded together, the largest first."""
    prefill_groups: tuple[int, ...]
    """Groups that are prefilled together, the largest first."""
    prefix_sizes: tuple[int, ...]
    suffix_sizes: tuple[int, ...]
    """Prompt lengths that prefill is compiled for, the largest first."""

    @property
    def capacity(self) -> int:
        """Suffix slots of a row: its own prompt and its completion."""
        return self.suffix + self.max_new_tokens

    def holds(self, group: PromptGroup, windows: int, max_new_tokens: int) -> bool:
        """Whether a group, whose largest image has `windows` windows, can be of this kind."""
        images = len(group.all_images)
        return (
            len(group.suffixes) <= self.siblings
            and len(group.prefix) <= self.prefix
            and max(map(len, group.suffixes)) <= self.suffix
            and max_new_tokens <= self.max_new_tokens
            and windows <= self.windows
            and images <= self.images
            and bool(images) == bool(self.images)
        )


@dataclasses.dataclass(frozen=True)
class Fit:
    """How many prompts of one kind the engine can hold at once."""

    name: str
    groups: int
    rows: int
    siblings: int
    prefix_tokens: int
    suffix_tokens: int
    max_new_tokens: int
    gib: float
    """Memory of the keys and values on each device, in GiB."""
    cache_gib: float
    """The setting engine.cache_gib."""

    def __str__(self) -> str:
        limit = f" of engine.cache_gib {self.cache_gib:g}" if self.cache_gib else ""
        return (
            f"{self.name}: {self.rows} rows ({self.groups} groups of {self.siblings}) at once, prefixes up "
            f"to {self.prefix_tokens} tokens, own prompts up to {self.suffix_tokens}, completions up to "
            f"{self.max_new_tokens}: {self.gib:.3g} GiB{limit}"
        )


def sizes(largest: int, count: int, divisor: int, multiple: int = 1) -> tuple[int, ...]:
    """At most `count` sizes from `largest` down, each 1 / `divisor` of the one before; multiples of
    `multiple`."""
    found = [math.ceil(largest / multiple) * multiple]
    while len(found) < count:
        smaller = math.ceil(found[-1] / divisor / multiple) * multiple
        if smaller == found[-1]:
            break
        found.append(smaller)
    return tuple(found)


def plan(
    limits: PromptLimits, model: Qwen25VLConfig, config: EngineConfig, shards: int, bytes_per_slot: float
) -> tuple[Kind, Fit]:
    """The sizes for one kind of prompts: as many groups as engine.groups and the memory allow.

    Args:
        limits: the largest prompts.
        shards: devices that rows are spread over; every number of rows is a multiple of it.
        bytes_per_slot: of one token's keys and values of all layers on one device.

    Raises:
        UserError: engine.cache_gib does not hold even one group of these lengths.
    """
    siblings, capacity = limits.siblings, limits.suffix_tokens + limits.max_new_tokens
    row_length = limits.prefix_tokens + siblings * limits.suffix_tokens

    def up(n: int) -> int:
        return math.ceil(n / shards) * shards

    def shape(groups: int) -> tuple[int, int, int, float]:
        """Rows, resident groups, groups of a prefill, and the GiB that all of this takes."""
        # When some siblings of a group have finished, a new group takes their rows: it needs room for its
        # prefix while the others' are still in use. Worth it where prefixes are the smaller part.
        resident = groups
        if siblings > 1 and limits.prefix_tokens * 4 <= siblings * capacity:
            resident = 2 * groups
        rows, resident = up(groups * siblings), up(resident)
        together = max(1, min(groups, config.prefill_tokens // row_length))
        together = up(1 << (together.bit_length() - 1))

        def slots(rows: int) -> int:
            return rows * capacity + min(rows, resident) * limits.prefix_tokens

        # Beside the pool there are, at times, a prefill's keys and values, twice (as computed, and as they go
        # into the pool), or the next smaller pool.
        smaller = sizes(rows, config.pool_sizes, 4, shards)[1:2]
        beside = max(2 * together * row_length, sum(map(slots, smaller)))
        return rows, resident, together, (slots(rows) + beside) / shards * bytes_per_slot / GIB

    groups = min(limits.groups or config.groups, config.groups)
    if config.cache_gib:
        while groups > 1 and shape(groups)[-1] > config.cache_gib:
            groups -= 1
    rows, resident, together, gib = shape(groups)
    if config.cache_gib and gib > config.cache_gib:
        raise UserError(
            f"engine.cache_gib is {config.cache_gib:g}: one group of {limits.name} prompts (a prefix of "
            f"{limits.prefix_tokens} tokens, {siblings} siblings of {limits.suffix_tokens} + "
            f"{limits.max_new_tokens} tokens) needs {gib:.3g} GiB; set it to at least "
            f"{math.ceil(gib * 100) / 100:g}, or make prompts, completions or groups smaller"
        )
    counts = sizes(rows, config.pool_sizes, 4, shards)
    kind = Kind(
        name=limits.name,
        siblings=siblings,
        prefix=limits.prefix_tokens,
        suffix=limits.suffix_tokens,
        max_new_tokens=limits.max_new_tokens,
        # Images are padded to whole buckets of windows: what is warmed up must hold the padded ones.
        windows=bucket(limits.windows, config.window_multiple) if limits.windows else 0,
        images=limits.images if limits.windows else 0,
        pools=tuple((count, min(resident, count)) for count in counts),
        prefill_groups=sizes(together, config.pool_sizes, 4, shards),
        prefix_sizes=sizes(limits.prefix_tokens, config.length_sizes, 2),
        suffix_sizes=sizes(limits.suffix_tokens, config.length_sizes, 2),
    )
    fit = Fit(
        limits.name,
        groups,
        rows,
        siblings,
        limits.prefix_tokens,
        limits.suffix_tokens,
        limits.max_new_tokens,
        gib,
        config.cache_gib,
    )
    return kind, fit
