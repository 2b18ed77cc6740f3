"""The engine: sorts groups of prompts into kinds, and takes one kind after the other through its pool."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memocr_jax.config import EngineConfig, SamplingConfig
from memocr_jax.core.buckets import bucket
from memocr_jax.core.sharding import batch_shards, put_batch, tensor_shards
from memocr_jax.core.types import Completion
from memocr_jax.engine.features import ImageFeatures
from memocr_jax.engine.groups import PromptGroup, check_groups
from memocr_jax.engine.programs import EnginePrograms
from memocr_jax.engine.run import Asked, PoolRun, Watch
from memocr_jax.engine.sizes import Fit, Kind, PromptLimits
from memocr_jax.engine.sizes import plan as plan_sizes
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import Image, most_windows, vision_batch

Finished = Callable[[int, list[Completion]], None]
"""Called with (index of the group, its completions)."""


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
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        copies = on_cpu if decoding_copy is None else decoding_copy
        self._programs = EnginePrograms(
            graphdef, model_config, mesh, self.eos_ids, config.decode_segment, decoding_copy=copies
        )

    @property
    def executables(self) -> int:
        """Number of programs compiled so far. It is constant once nothing is compiled any more."""
        return self._programs.compiled

    def fits(self, limits: PromptLimits) -> Fit:
        """How many prompts of a kind the engine holds at once; its text says so in a line.

        Needs no weights. Raises UserError when engine.cache_gib does not hold a single group.
        """
        return self.plan(limits)[1]

    def warm_up(self, params: nnx.State, kinds: Sequence[PromptLimits]) -> list[Fit]:
        """Compile, and run once, every program that prompts within these limits need.

        From then on, groups within the limits of a kind use its programs and compile nothing. Raises
        UserError as `fits`, before anything is compiled.
        """
        plans = [self.plan(limits) for limits in kinds]
        with jax.transfer_guard("disallow"):
            weights = self._programs.weights(params)
            for kind, _ in plans:
                PoolRun(self._programs, params, weights, kind, self._features(params)).warm_up()
        self._kinds += [kind for kind, _ in plans]
        return [fit for _, fit in plans]

    def lower(self, params: nnx.State, limits: PromptLimits) -> dict[str, jax.stages.Lowered]:
        """The largest programs that prompts within these limits need, lowered and not run: `vision` (with
        images), `prefill` and `decode`. The mesh may be of devices that are not here.

        Args:
            params: jax.ShapeDtypeStruct with shardings on the engine's mesh.

        Raises:
            UserError: as `fits`.
        """
        return self._programs.lower(params, self.plan(limits)[0])

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
            progress: called with (groups done, groups in all).
            watch: called every few tokens for every unfinished row; False ends the row as it is.
            more: called every few tokens for new groups, whose numbers follow those of `groups`. With it,
                pools are made for engine.groups groups of up to `max_new_tokens`, whatever comes first.
            finished: called with each group's completions as soon as it is done; then nothing is returned.

        Raises:
            UserError: a group without siblings or own tokens, or one that does not fit into engine.cache_gib.
        """
        asked: list[Asked | None] = []
        queues: dict[Kind, collections.deque[Asked]] = {}
        features = self._features(params)

        def add(new: Sequence[PromptGroup]) -> None:
            check_groups(new)
            items = [
                Asked(
                    len(asked) + i,
                    group,
                    group.sampling or sampling,
                    group.max_new_tokens or max_new_tokens,
                    most_windows(group.all_images, self.model_config.vision, self.config.window_multiple),
                )
                for i, group in enumerate(new)
            ]
            open_ended = max_new_tokens if more is not None else 0
            for kind, queue in self._sort(items, list(queues), open_ended).items():
                queues.setdefault(kind, collections.deque()).extend(queue)
            asked.extend(items)
            for item in items:
                features.expect(item.images)

        add(groups)
        done = 0

        def complete(item: Asked) -> None:
            nonlocal done
            done += 1
            progress(done, len(asked))
            if finished is not None:
                asked[item.index] = None  # a call without an end must not keep finished groups
                finished(item.index, item.completions)

        def ask(kind: Kind) -> bool:
            """Take in new groups; False when it is another kind's turn."""
            known = len(asked)
            if more is not None and (new := more()):
                add(new)
            others = [queue[0].index for other, queue in queues.items() if queue and other != kind]
            mine = queues[kind][0].index if queues[kind] else known
            return more is None or not others or mine < min(others)

        with jax.transfer_guard("disallow"):
            weights = self._programs.weights(params) if asked else None
            while waiting := [kind for kind, queue in queues.items() if queue]:
                # The kind that has waited longest goes first; one after the other shares the memory.
                kind = min(waiting, key=lambda kind: queues[kind][0].index)
                run = PoolRun(self._programs, params, weights, kind, features)
                run.work(queues[kind], functools.partial(ask, kind), complete, watch)
        return [item.completions for item in asked if item is not None]

    def plan(self, limits: PromptLimits) -> tuple[Kind, Fit]:
        """The sizes of the programs for prompts within these limits, and how many prompts fit.

        Raises UserError as `fits`.
        """
        text = self.model_config.text
        heads = text.num_key_value_heads
        shared = tensor_shards(self.mesh) if heads % tensor_shards(self.mesh) == 0 else 1
        slot = 2 * text.num_hidden_layers * heads * text.head_dim * jnp.dtype(self._programs.dtype).itemsize
        return plan_sizes(limits, self.model_config, self.config, batch_shards(self.mesh), slot / shared)

    def _sort(
        self, items: Sequence[Asked], known: Sequence[Kind], open_ended: int
    ) -> dict[Kind, list[Asked]]:
        """The kind of every group: one that was warmed up or is in use, or a new one of padded sizes.

        `open_ended`: the most new tokens of groups that may follow; 0 when these are all.
        """
        kinds: dict[Kind, list[Asked]] = {}
        strangers: dict[tuple[int, ...], list[Asked]] = {}
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
            kinds.setdefault(self.plan(limits)[0], []).extend(same)
        # Similar lengths are prefilled together, so that padding is small.
        return {kind: sorted(queue, key=lambda item: len(item.group.prefix)) for kind, queue in kinds.items()}

    def _features(self, params: nnx.State) -> ImageFeatures:
        def encode(
            images: Sequence[Image], windows: int, count: int
        ) -> tuple[tuple[jax.Array, ...], list[np.ndarray]]:
            vision, slots = vision_batch(images, self.model_config.vision, windows=windows, rows=count)
            arrays = self._programs.encode(params, put_batch(vision, self.mesh))
            self.encoded_images += len(images)
            return arrays, [slot - i * arrays[0].shape[0] for i, slot in enumerate(slots)]

        return ImageFeatures(encode, self.model_config)
