"""The loop that keeps the device busy: finished rows leave the pool, waiting groups take their places."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memocr_jax.config import EngineConfig, SamplingConfig
from memocr_jax.core.buckets import bucket
from memocr_jax.core.sharding import batch_shards, cache_sharding, put_batch, replicated, tensor_shards
from memocr_jax.core.types import Completion, Stop
from memocr_jax.engine import pool as device
from memocr_jax.engine.prompts import PromptGroup, check_groups, image_grid, image_key, most_windows
from memocr_jax.engine.sampling import RowSampling
from memocr_jax.engine.sizes import Fit, Kind, PromptLimits, plan
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import vision_batch
from memocr_jax.models.packing import PackedRows, PlacedImage

Watch = Callable[[int, int, np.ndarray], bool]
"""(index of the group, sibling, tokens so far) -> whether to go on."""

Finished = Callable[[int, list[Completion]], None]
"""Told (index of the group, its completions)."""


class Engine:
    """Samples completions for groups of prompts on one mesh.

    Args:
        graphdef: of `Qwen25VL`, whose compute type is the cache's.
        model_config: its configuration.
        mesh: this process's devices.
        config: sizes and memory.
        eos_ids: tokens that end a completion.
        decoding_copy: whether decoding reads a copy of the weights in another layout, and a cache of
            separate layers; by default on a CPU, where that is two to three times as fast.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        model_config: Qwen25VLConfig,
        mesh: jax.sharding.Mesh,
        config: EngineConfig,
        eos_ids: Sequence[int],
        decoding_copy: bool | None = None,
    ):
        self.graphdef, self.model_config, self.mesh, self.config = graphdef, model_config, mesh, config
        self.eos_ids = tuple(eos_ids)
        self.encoded_images = 0
        """Images that went through the vision tower since the engine was made."""
        self._kinds: list[Kind] = []
        self._dtype = _compute_dtype(graphdef)
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._copies = on_cpu if decoding_copy is None else decoding_copy
        self._copy_graphdef: nnx.GraphDef | None = None
        text = model_config.text
        kv = cache_sharding(mesh, text.num_key_value_heads, stacked=not self._copies)
        layers = (kv,) * text.num_hidden_layers if self._copies else kv
        whole = replicated(mesh)
        self._shapes = {
            "layers": text.num_hidden_layers,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "dtype": self._dtype,
            "per_layer": self._copies,
        }
        fields = {name: whole for name in device.Pool._fields}
        fields["sampling"] = RowSampling(whole, whole, whole, whole)
        fields["cache"] = device.DecodeCache(layers, layers, whole, layers, layers, whole, whole, whole)
        pool = device.Pool(**fields)
        jit, bind = jax.jit, device.bind
        self._empty = jit(
            device.empty_pool,
            static_argnums=(0, 1),
            static_argnames=("siblings", "prefix", "capacity", "max_new_tokens", *self._shapes),
            out_shardings=pool,
        )
        self._encode = jit(bind(device.encode, graphdef), out_shardings=whole)
        self._prefill = jit(bind(device.prefill, graphdef, self.eos_ids), static_argnames=("prefix_slots",))
        self._insert = jit(
            bind(device.insert, self.eos_ids),
            static_argnames=("prefix_slots",),
            donate_argnums=0,
            out_shardings=pool,
        )
        self._decode = jit(
            lambda *args: device.decode(
                graphdef, self._copy_graphdef, self.eos_ids, config.decode_segment, *args
            ),
            donate_argnums=0,
            out_shardings=pool,
        )
        self._shrink = jit(device.shrink, out_shardings=pool)
        self._stop = jit(device.stop, donate_argnums=0, out_shardings=pool)
        self._copy = jit(lambda params: nnx.state(nnx.merge(graphdef, params).decoding_copy()))

    @property
    def executables(self) -> int:
        """Programs compiled so far. It stays where it is when nothing is compiled any more."""
        programs = (
            self._empty,
            self._encode,
            self._prefill,
            self._insert,
            self._decode,
            self._shrink,
            self._stop,
            self._copy,
        )
        return sum(program._cache_size() for program in programs)

    def fits(self, limits: PromptLimits) -> Fit:
        """How many prompts of a kind the engine holds at once; its text says so in a line.

        Needs no weights. Raises UserError when engine.cache_gib does not hold a single group.
        """
        return self._plan(limits)[1]

    def warm_up(self, params: nnx.State, kinds: Sequence[PromptLimits]) -> list[Fit]:
        """Compile, and run once, every program that prompts within these limits need.

        From then on, groups within the limits of a kind use its programs and compile nothing. Raises
        UserError as `fits`, before anything is compiled.
        """
        plans = [self._plan(limits) for limits in kinds]
        with jax.transfer_guard("disallow"):
            weights = self._weights(params)
            for kind, _ in plans:
                _Run(self, params, weights, kind, _FeatureStore()).warm_up()
        self._kinds += [kind for kind, _ in plans]
        return [fit for _, fit in plans]

    def generate(
        self,
        params: nnx.State,
        groups: Sequence[PromptGroup],
        max_new_tokens: int,
        sampling: SamplingConfig,
        progress: Callable[[int, int], None] = lambda done, total: None,
        watch: Watch | None = None,
        more: Callable[[], Sequence[PromptGroup]] | None = None,
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """Complete every sibling of every group, in order.

        A completion ends with a stop token (kept) or at `max_new_tokens`. What a row samples depends on its
        prompt, its key and its settings alone.

        Args:
            params: the model's parameters on the engine's mesh.
            max_new_tokens, sampling: of the groups that do not say otherwise.
            progress: is told groups done and in all.
            watch: is asked every few tokens, for every row that goes on; False ends the row as it is.
            more: is asked every few tokens for groups that have come in since; they count on from `groups`.
                With it, pools are made for engine.groups of up to `max_new_tokens`, whatever comes first.
            finished: is given each group's completions as soon as it is done; then nothing is returned.

        Raises:
            UserError: a group without siblings or own tokens, or one that does not fit into engine.cache_gib.
        """
        asked: list[_Asked | None] = []
        queues: dict[Kind, collections.deque[_Asked]] = {}
        features = _FeatureStore()

        def add(new: Sequence[PromptGroup]) -> None:
            check_groups(new)
            items = [
                _Asked(
                    len(asked) + i,
                    group,
                    group.sampling or sampling,
                    group.max_new_tokens or max_new_tokens,
                    most_windows(group.all_images, self.model_config, self.config.window_multiple),
                )
                for i, group in enumerate(new)
            ]
            open_ended = max_new_tokens if more is not None else 0
            for kind, queue in self._sort(items, list(queues), open_ended).items():
                queues.setdefault(kind, collections.deque()).extend(queue)
            asked.extend(items)
            for item in items:
                features.expect(item.image_keys)

        add(groups)
        done = 0

        def complete(item: _Asked) -> None:
            nonlocal done
            done += 1
            progress(done, len(asked))
            if finished is not None:
                asked[item.index] = None  # a call without an end must not keep what is done
                finished(item.index, item.completions)

        def ask(kind: Kind) -> bool:
            """Take in what has come; False when another kind's turn has come."""
            known = len(asked)
            if more is not None and (new := more()):
                add(new)
            others = [queue[0].index for other, queue in queues.items() if queue and other != kind]
            mine = queues[kind][0].index if queues[kind] else known
            return more is None or not others or mine < min(others)

        with jax.transfer_guard("disallow"):
            weights = self._weights(params) if asked else None
            while waiting := [kind for kind, queue in queues.items() if queue]:
                # The kind that has waited longest goes first; one after the other shares the memory.
                kind = min(waiting, key=lambda kind: queues[kind][0].index)
                run = _Run(self, params, weights, kind, features)
                run.work(queues[kind], functools.partial(ask, kind), complete, watch)
        return [item.completions for item in asked if item is not None]

    def _plan(self, limits: PromptLimits) -> tuple[Kind, Fit]:
        text = self.model_config.text
        heads = text.num_key_value_heads
        shared = tensor_shards(self.mesh) if heads % tensor_shards(self.mesh) == 0 else 1
        slot = 2 * text.num_hidden_layers * heads * text.head_dim * jnp.dtype(self._dtype).itemsize
        return plan(limits, self.model_config, self.config, batch_shards(self.mesh), slot / shared)

    def _sort(
        self, items: Sequence[_Asked], known: Sequence[Kind], open_ended: int
    ) -> dict[Kind, list[_Asked]]:
        """The kind of every group: one that was warmed up or is in use, or a new one of padded sizes.

        `open_ended`: the most new tokens of groups that may follow; 0 when these are all.
        """
        kinds: dict[Kind, list[_Asked]] = {}
        strangers: dict[tuple[int, ...], list[_Asked]] = {}
        for item in items:
            fitting = [
                kind
                for kind in [*self._kinds, *known]
                if kind.holds(item.group, item.windows, item.max_new_tokens)
            ]
            if fitting:
                smallest = min(fitting, key=lambda kind: kind.prefix + kind.siblings * kind.capacity)
                kinds.setdefault(smallest, []).append(item)
            else:
                same = (len(item.group.suffixes), item.windows, len(item.group.all_images))
                strangers.setdefault(same, []).append(item)
        multiple = self.config.length_multiple
        for (siblings, windows, images), same in strangers.items():
            limits = PromptLimits(
                f"{siblings}-sibling" if not images else f"{siblings}-sibling image",
                siblings,
                bucket(max(len(item.group.prefix) for item in same), multiple),
                bucket(max(len(s) for item in same for s in item.group.suffixes), max(1, multiple // 4)),
                max(open_ended, *(item.max_new_tokens for item in same)),
                windows,
                images,
                0 if open_ended else bucket(len(same)),
            )
            kinds.setdefault(self._plan(limits)[0], []).extend(same)
        # Similar lengths are prefilled together, so that padding is small.
        return {kind: sorted(queue, key=lambda item: len(item.group.prefix)) for kind, queue in kinds.items()}

    def _weights(self, params: nnx.State) -> nnx.State | None:
        """The copy of the weights that decoding reads, where it reads one."""
        if not self._copies:
            return None
        if self._copy_graphdef is None:
            model = nnx.eval_shape(lambda params: nnx.merge(self.graphdef, params).decoding_copy(), params)
            self._copy_graphdef = nnx.graphdef(model)
        return self._copy(params)


@dataclasses.dataclass(eq=False)
class _Asked:
    """A group on its way through the engine."""

    index: int
    group: PromptGroup
    sampling: SamplingConfig
    max_new_tokens: int
    windows: int
    """Of its largest image; 0 without images."""
    completions: list[Completion | None] = dataclasses.field(default_factory=list)
    left: int = 0
    """Siblings that are not finished."""
    image_keys: list[bytes] = dataclasses.field(default_factory=list)
    """One for each of the group's images; equal for equal images."""

    def __post_init__(self) -> None:
        self.left = len(self.group.suffixes)
        self.completions = [None] * self.left
        self.image_keys = [image_key(image) for image in self.group.all_images]


@dataclasses.dataclass
class _Features:
    """What the vision tower made of an image."""

    array: jax.Array
    """[slots, D]"""
    slots: np.ndarray
    """i32[M], the slot of each of its tokens"""


class _FeatureStore:
    """Features of images for as long as a group waits that shows them."""

    def __init__(self) -> None:
        self.of: dict[tuple[bytes, int], _Features] = {}
        """By the image's key and the windows of its padded layout."""
        self._uses: collections.Counter[bytes] = collections.Counter()

    def expect(self, keys: Sequence[bytes]) -> None:
        self._uses.update(keys)

    def release(self, keys: Sequence[bytes]) -> None:
        self._uses.subtract(keys)
        for key in list(self.of):
            if self._uses[key[0]] <= 0:
                del self.of[key]


class _Run:
    """One kind of prompts through one pool."""

    def __init__(
        self,
        engine: Engine,
        params: nnx.State,
        weights: nnx.State | None,
        kind: Kind,
        features: _FeatureStore,
    ):
        self.engine, self.params, self.weights, self.kind = engine, params, weights, kind
        self.features = features
        self._put = lambda tree: jax.device_put(tree, replicated(engine.mesh))

    def open(self, level: int) -> None:
        """An empty pool of one of the kind's sizes."""
        self.level = level
        self.rows: list[tuple[_Asked, int] | None] = [None] * self.kind.pools[level][0]
        """The sibling in each row, None when free."""
        self.groups: list[_Asked | None] = [None] * self.kind.pools[level][1]
        self.pool = self.engine._empty(
            *self.kind.pools[level],
            siblings=self.kind.siblings,
            prefix=self.kind.prefix,
            capacity=self.kind.capacity,
            max_new_tokens=self.kind.max_new_tokens,
            **self.engine._shapes,
        )

    def work(
        self,
        queue: collections.deque[_Asked],
        ask: Callable[[], bool],
        finished: Callable[[_Asked], None],
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
            self.pool = self.engine._decode(
                self.pool, self.params, self.weights, self._put(np.int32(self._enough(waiting)))
            )
            for item in self._collect(watch):
                finished(item)
            admit = ask()

    def _level(self, rows: int, groups: int) -> int:
        """The smallest pool with so much room, or the largest."""
        fitting = [i for i, (r, g) in enumerate(self.kind.pools) if rows <= r and groups <= g]
        return max(fitting, default=0)

    def _room(self, queue: Iterable[_Asked]) -> int:
        """How many of the next groups have room in the pool."""
        rows, groups = self.rows.count(None), self.groups.count(None)
        count = 0
        for item in queue:
            rows -= item.left
            if rows < 0 or count == groups:
                break
            count += 1
        return count

    def _admit(self, queue: collections.deque[_Asked]) -> None:
        """Prefill waiting groups while there is room for as many as are prefilled together."""
        sizes = self.kind.prefill_groups
        while queue:
            room, wanted = self._room(queue), min(sizes[0], len(queue))
            idle = all(row is None for row in self.rows)
            if room < wanted and not (idle and room):
                return
            size = next((size for size in sizes if size <= room), sizes[-1])
            self._insert([queue.popleft() for _ in range(min(size, room))], size)

    def _enough(self, queue: Sequence[_Asked]) -> int:
        """The number of rows left at which the host has something to do: groups wait, or a smaller pool."""
        if queue:
            wanted = min(self.kind.prefill_groups[0], len(queue))
            rows = sum(queue[i].left for i in range(wanted))
            return max(0, len(self.rows) - rows) if self.groups.count(None) >= wanted else 0
        smaller = self.kind.pools[self.level + 1 :]
        return smaller[0][0] if smaller else 0

    def _insert(self, items: list[_Asked], size: int) -> None:
        prefix = self._size(self.kind.prefix_sizes, max(len(item.group.prefix) for item in items))
        longest = max(len(s) for item in items for s in item.group.suffixes)
        suffix = self._size(self.kind.suffix_sizes, longest)
        features = self._encode(items, size)
        free_rows = [i for i, row in enumerate(self.rows) if row is None]
        free_groups = [i for i, group in enumerate(self.groups) if group is None]
        prompts = self._pack(items, size, prefix, suffix, free_rows, free_groups)
        self._prefill(prompts, features, prefix)
        for item in items:
            self.features.release(item.image_keys)

    def _prefill(self, prompts: device.Prompts, features: Sequence[jax.Array], prefix: int) -> None:
        prompts = self._put(prompts)
        prefilled = self.engine._prefill(self.params, prompts, tuple(features), prefix_slots=prefix)
        self.pool = self.engine._insert(self.pool, prompts, prefilled, prefix_slots=prefix)

    def _size(self, sizes: Sequence[int], length: int) -> int:
        return min(size for size in sizes if size >= length)

    def _pack(
        self,
        items: Sequence[_Asked],
        size: int,
        prefix: int,
        suffix: int,
        free_rows: list[int],
        free_groups: list[int],
    ) -> device.Prompts:
        """The groups as arrays, and their places in the pool, which are taken here."""
        kind, config = self.kind, self.engine.model_config
        packed = PackedRows.empty(size, prefix + kind.siblings * suffix)
        each = (size, kind.siblings)
        prefix_len, suffix_len = np.zeros(size, np.int32), np.zeros(each, np.int32)
        next_pos, keys = np.zeros(each, np.int32), np.zeros((*each, 2), np.uint32)
        sampling = RowSampling(*(np.broadcast_to(x, each).copy() for x in RowSampling.of(SamplingConfig())))
        limit = np.ones(each, np.int32)
        # Past the pool's end, where nothing is written.
        groups = np.full(size, len(self.groups), np.int32)
        rows = np.full(each, len(self.rows), np.int32)
        for q, item in enumerate(items):
            group, count = item.group, len(item.group.suffixes)
            starts = [prefix + k * suffix for k in range(count)]
            images = iter(self._placed(item, q))
            next_pos[q, :count] = packed.place_group(
                q,
                group.prefix,
                group.suffixes,
                starts,
                [next(images) for _ in group.prefix_images],
                [[next(images) for _ in own] for own in group.own_images],
                config,
            )
            prefix_len[q] = len(group.prefix)
            suffix_len[q, :count] = [len(s) for s in group.suffixes]
            keys[q, :count] = group.keys
            for values, value in zip(sampling, RowSampling.of(item.sampling), strict=True):
                values[q] = value[0]
            limit[q] = item.max_new_tokens
            groups[q] = free_groups[q]
            self.groups[free_groups[q]] = item
            for k in range(count):
                rows[q, k] = row = free_rows.pop(0)
                self.rows[row] = (item, k)
        return device.Prompts(
            tokens=packed.tokens,
            mrope_pos=packed.mrope_pos.transpose(1, 0, 2),
            segments=packed.segments,
            image_slots=packed.image_slots,
            prefix_len=prefix_len,
            suffix_len=suffix_len,
            next_pos=next_pos,
            keys=keys,
            sampling=sampling,
            limit=limit,
            groups=groups,
            rows=rows,
        )

    def _placed(self, item: _Asked, q: int) -> list[PlacedImage]:
        """The images of group q of a prefill, as `_encode` arranged their features."""
        placed = []
        for i, (key, image) in enumerate(zip(item.image_keys, item.group.all_images, strict=True)):
            features = self.features.of[key, self.kind.windows]
            first = (q * self.kind.images + i) * features.array.shape[0]
            placed.append(PlacedImage(first + features.slots, image_grid(image, self.engine.model_config)))
        return placed

    def _encode(self, items: Sequence[_Asked], size: int) -> list[jax.Array]:
        """The features of a prefill's images, `kind.images` arrays for each of `size` groups. Each image is
        computed once in a call, whichever groups show it."""
        if not self.kind.images:
            return []
        known, windows = self.features.of, self.kind.windows
        missing = {
            key: image
            for item in items
            for key, image in zip(item.image_keys, item.group.all_images, strict=True)
            if (key, windows) not in known
        }
        todo, sizes = list(missing.items()), self.kind.prefill_groups
        while todo:
            count = next((size for size in sizes if size <= len(todo)), sizes[-1])
            batch, todo = todo[:count], todo[count:]
            arrays, slots = self._encode_batch([image for _, image in batch], count)
            for (key, _), array, slot in zip(batch, arrays, slots, strict=False):
                known[key, windows] = _Features(array, slot)
            self.engine.encoded_images += len(batch)
        arrays = []
        padding = known[items[0].image_keys[0], windows].array
        for item in items:
            own = [known[key, windows].array for key in item.image_keys]
            arrays += own + [padding] * (self.kind.images - len(own))
        return arrays + [padding] * (size * self.kind.images - len(arrays))

    def _encode_batch(
        self, images: Sequence[np.ndarray], count: int
    ) -> tuple[tuple[jax.Array, ...], list[np.ndarray]]:
        """Features of images in a batch of `count`, and the slot of each image's tokens in its own array."""
        config, mesh = self.engine.model_config, self.engine.mesh
        vision, slots = vision_batch(images, config.vision, windows=self.kind.windows, rows=count)
        arrays = self.engine._encode(self.params, put_batch(vision, mesh))
        return arrays, [slot - i * arrays[0].shape[0] for i, slot in enumerate(slots)]

    def _collect(self, watch: Watch | None) -> list[_Asked]:
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
            stop = Stop.EOS if own[-1] in self.engine.eos_ids else Stop.LENGTH
            item.completions[k] = Completion(own.copy(), logp[row, : lengths[row]].copy(), stop)
            item.left -= 1
            self.rows[row] = None
            if not item.left:
                self.groups[self.groups.index(item)] = None
                complete.append(item)
        if stopped.any():
            self.pool = self.engine._stop(self.pool, self._put(stopped))
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
        pad = lambda indices, count: np.array(indices + [0] * (count - len(indices)), np.int32)  # noqa: E731
        move = device.Move(
            pad(rows, row_count), np.arange(row_count) < len(rows), pad(groups, group_count), members, place
        )
        self.pool = self.engine._shrink(self.pool, self._put(move))

    def warm_up(self) -> None:
        """Run every program of this kind once, on padding."""
        kind = self.kind
        features = {}
        if kind.images:
            features = {count: self._encode_batch([], count)[0][0] for count in kind.prefill_groups}
        for level, (_, groups) in enumerate(kind.pools):
            self.open(level)
            for size in kind.prefill_groups:
                if size > groups and size != kind.prefill_groups[-1]:
                    continue
                images = [features[size]] * (size * kind.images) if kind.images else []
                for prefix in kind.prefix_sizes:
                    for suffix in kind.suffix_sizes:
                        self._prefill(self._pack([], size, prefix, suffix, [], []), images, prefix)
            self.pool = self.engine._decode(self.pool, self.params, self.weights, self._put(np.int32(0)))
            self.pool = self.engine._stop(self.pool, self._put(np.zeros(len(self.rows), bool)))
            for smaller in range(level + 1, len(kind.pools)):
                self.open(level)
                self._move([], [], smaller)


def _compute_dtype(graphdef: nnx.GraphDef) -> Any:
    """The type of activations, which `Qwen25VL` keeps as an attribute of the graph."""
    return next(value.value for name, value in graphdef.attributes if name == "dtype")
