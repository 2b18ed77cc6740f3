"""Runs one kind of prompts through a pool: waiting groups take the places of finished ones."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from memocr_jax.config import SamplingConfig
from memocr_jax.core.sharding import replicated
from memocr_jax.core.types import Completion, Stop
from memocr_jax.engine import pool as device
from memocr_jax.engine.features import ImageFeatures, KeyedImage
from memocr_jax.engine.groups import PromptGroup
from memocr_jax.engine.programs import EnginePrograms
from memocr_jax.engine.sampling import RowSampling
from memocr_jax.engine.sizes import Kind
from memocr_jax.models.images import image_hash

Watch = Callable[[int, int, np.ndarray], bool]
"""Called with (index of the group, sibling, its tokens so far); False ends that sibling."""


@dataclasses.dataclass(eq=False)
class Asked:
    """A group on its way through the engine."""

    index: int
    group: PromptGroup
    sampling: SamplingConfig
    max_new_tokens: int
    windows: int
    """Attention windows of its largest image; 0 without images."""
    completions: list[Completion | None] = dataclasses.field(default_factory=list)
    left: int = 0
    """Siblings that are not finished."""
    images: list[KeyedImage] = dataclasses.field(default_factory=list)
    """The group's images, those of the prefix first."""

    def __post_init__(self) -> None:
        self.left = len(self.group.suffixes)
        self.completions = [None] * self.left
        self.images = [KeyedImage(image, image_hash(image)) for image in self.group.all_images]


class PoolRun:
    """Takes the groups of one kind through one pool."""

    def __init__(
        self,
        programs: EnginePrograms,
        params: nnx.State,
        weights: nnx.State | None,
        kind: Kind,
        features: ImageFeatures,
    ):
        self.programs, self.params, self.weights, self.kind = programs, params, weights, kind
        self.features = features

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, replicated(self.programs.mesh))

    def open(self, level: int) -> None:
        """Begin with an empty pool of one of the kind's sizes."""
        self.level = level
        self.rows: list[tuple[Asked, int] | None] = [None] * self.kind.pools[level][0]
        """The sibling in each row, None when free."""
        self.groups: list[Asked | None] = [None] * self.kind.pools[level][1]
        self.pool = self.programs.empty(self.kind, level)

    def work(
        self,
        queue: collections.deque[Asked],
        ask: Callable[[], bool],
        finished: Callable[[Asked], None],
        watch: Watch | None,
    ) -> None:
        """Complete the groups of the queue; those that `ask` adds to it too."""
        self.open(self._level(sum(item.left for item in queue), len(queue)))
        admit = True
        while True:
            if admit:
                self._admit(queue)
            live = sum(row is not None for row in self.rows)
            if not live:
                return
            waiting = queue if admit else ()
            if not waiting:
                self._shrink()
            self.pool = self.programs.decode(
                self.pool, self.params, self.weights, self._put(np.int32(self._enough(waiting)))
            )
            for item in self._collect(watch):
                finished(item)
            admit = ask()

    def _level(self, rows: int, groups: int) -> int:
        """The smallest pool with so much room, or the largest."""
        fitting = [i for i, (r, g) in enumerate(self.kind.pools) if rows <= r and groups <= g]
        return max(fitting, default=0)

    def _room(self, queue: Iterable[Asked]) -> int:
        """How many of the next groups have room in the pool."""
        rows, groups = self.rows.count(None), self.groups.count(None)
        count = 0
        for item in queue:
            rows -= item.left
            if rows < 0 or count == groups:
                break
            count += 1
        return count

    def _admit(self, queue: collections.deque[Asked]) -> None:
        """Prefill waiting groups while there is room for as many as are prefilled together."""
        sizes = self.kind.prefill_groups
        while queue:
            room, wanted = self._room(queue), min(sizes[0], len(queue))
            idle = all(row is None for row in self.rows)
            if room < wanted and not (idle and room):
                return
            size = next((size for size in sizes if size <= room), sizes[-1])
            self._insert([queue.popleft() for _ in range(min(size, room))], size)

    def _enough(self, queue: Sequence[Asked]) -> int:
        """The number of unfinished rows at which decoding returns: to admit groups or to shrink the pool."""
        if queue:
            wanted = min(self.kind.prefill_groups[0], len(queue))
            rows = sum(queue[i].left for i in range(wanted))
            return max(0, len(self.rows) - rows) if self.groups.count(None) >= wanted else 0
        smaller = self.kind.pools[self.level + 1 :]
        return smaller[0][0] if smaller else 0

    def _insert(self, items: list[Asked], size: int) -> None:
        prefix = self._size(self.kind.prefix_sizes, max(len(item.group.prefix) for item in items))
        longest = max(len(s) for item in items for s in item.group.suffixes)
        suffix = self._size(self.kind.suffix_sizes, longest)
        features = self.features.arrays([item.images for item in items], size, self.kind)
        free_rows = [i for i, row in enumerate(self.rows) if row is None]
        free_groups = [i for i, group in enumerate(self.groups) if group is None]
        prompts = self._pack(items, size, prefix, suffix, free_rows, free_groups)
        self._prefill(prompts, features, prefix)
        for item in items:
            self.features.release(item.images)

    def _prefill(self, prompts: device.Prompts, features: Sequence[jax.Array], prefix: int) -> None:
        prompts = self._put(prompts)
        prefilled = self.programs.prefill(self.params, prompts, tuple(features), prefix_slots=prefix)
        self.pool = self.programs.insert(self.pool, prompts, prefilled, prefix_slots=prefix)

    def _size(self, sizes: Sequence[int], length: int) -> int:
        return min(size for size in sizes if size >= length)

    def _pack(
        self,
        items: Sequence[Asked],
        size: int,
        prefix: int,
        suffix: int,
        free_rows: list[int],
        free_groups: list[int],
    ) -> device.Prompts:
        """The groups as arrays, and their places in the pool, which are taken here."""
        kind, config = self.kind, self.programs.model
        prompts, packed = device.empty_prompts(size, kind.siblings, prefix, suffix, kind.pools[self.level])
        for q, item in enumerate(items):
            group, count = item.group, len(item.group.suffixes)
            starts = [prefix + k * suffix for k in range(count)]
            images = iter(self.features.placed(item.images, q, kind))
            prompts.next_pos[q, :count] = packed.place(
                q,
                group.prefix,
                group.suffixes,
                starts,
                config,
                [next(images) for _ in group.prefix_images],
                [[next(images) for _ in own] for own in group.own_images],
            )
            prompts.prefix_len[q] = len(group.prefix)
            prompts.suffix_len[q, :count] = [len(s) for s in group.suffixes]
            prompts.keys[q, :count] = group.keys
            for values, value in zip(prompts.sampling, RowSampling.of(item.sampling), strict=True):
                values[q] = value[0]
            prompts.limit[q] = item.max_new_tokens
            prompts.groups[q] = free_groups[q]
            self.groups[free_groups[q]] = item
            for k in range(count):
                prompts.rows[q, k] = row = free_rows.pop(0)
                self.rows[row] = (item, k)
        return prompts

    def _collect(self, watch: Watch | None) -> list[Asked]:
        """Take the rows that are done out of the pool; returns the groups that are complete with them."""
        done, lengths = jax.device_get((self.pool.done, self.pool.lengths))
        used = [(row, *place) for row, place in enumerate(self.rows) if place is not None]
        if watch is None and not any(done[row] for row, _, _ in used):
            return []
        tokens, logp = jax.device_get((self.pool.tokens, self.pool.logp))
        stopped = np.zeros(len(self.rows), bool)
        complete = []
        for row, item, k in used:
            own = tokens[row, : lengths[row]]
            if not done[row]:
                stopped[row] = watch is not None and not watch(item.index, k, own)
                if not stopped[row]:
                    continue
            stop = Stop.EOS if own[-1] in self.programs.eos_ids else Stop.LENGTH
            item.completions[k] = Completion(own.copy(), logp[row, : lengths[row]].copy(), stop)
            item.left -= 1
            self.rows[row] = None
            if not item.left:
                self.groups[self.groups.index(item)] = None
                complete.append(item)
        if stopped.any():
            self.pool = self.programs.stop(self.pool, self._put(stopped))
        return complete

    def _shrink(self) -> None:
        """Go on in a smaller pool when the rows that are left fit into one."""
        rows = [i for i, row in enumerate(self.rows) if row is not None]
        groups = [i for i, group in enumerate(self.groups) if group is not None]
        level = self._level(len(rows), len(groups))
        if level > self.level:
            self._move(rows, groups, level)

    def _move(self, rows: list[int], groups: list[int], level: int) -> None:
        """Carry the given rows and groups over into a smaller pool."""
        row_count, group_count = self.kind.pools[level]
        old_rows, old_groups = self.rows, self.groups
        self.level = level
        self.rows = [old_rows[i] for i in rows] + [None] * (row_count - len(rows))
        self.groups = [old_groups[i] for i in groups] + [None] * (group_count - len(groups))
        members = np.full((group_count, self.kind.siblings), row_count, np.int32)
        place = np.zeros(row_count, np.int32)
        for row, (item, k) in enumerate(self.rows[: len(rows)]):
            group = self.groups.index(item)
            members[group, k] = row
            place[row] = group * self.kind.siblings + k

        def pad(indices: list[int], count: int) -> np.ndarray:
            return np.array(indices + [0] * (count - len(indices)), np.int32)

        move = device.Move(
            pad(rows, row_count), np.arange(row_count) < len(rows), pad(groups, group_count), members, place
        )
        self.pool = self.programs.shrink(self.pool, self._put(move))

    def warm_up(self) -> None:
        """Run every program of this kind once, on padding."""
        kind = self.kind
        features = {}
        if kind.images:
            features = {size: self.features.padding(kind, size) for size in kind.prefill_groups}
        for level, (_, groups) in enumerate(kind.pools):
            self.open(level)
            for size in kind.prefill_groups:
                if size > groups and size != kind.prefill_groups[-1]:
                    continue
                images = [features[size]] * (size * kind.images) if kind.images else []
                for prefix in kind.prefix_sizes:
                    for suffix in kind.suffix_sizes:
                        self._prefill(self._pack([], size, prefix, suffix, [], []), images, prefix)
            self.pool = self.programs.decode(self.pool, self.params, self.weights, self._put(np.int32(0)))
            self.pool = self.programs.stop(self.pool, self._put(np.zeros(len(self.rows), bool)))
            for smaller in range(level + 1, len(kind.pools)):
                self.open(level)
                self._move([], [], smaller)
