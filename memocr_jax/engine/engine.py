"""The rollout engine: one prefix, K siblings. Token ids in, token ids out.

A group's prefix is computed once in prefill and read once per decoded token: the siblings attend to it and to
their own tokens, and the two softmaxes are merged (Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, UInt32

from memocr_jax.buckets import batches, bucket
from memocr_jax.config import EngineConfig, SamplingConfig
from memocr_jax.images import num_windows, vision_batch
from memocr_jax.models.cache import DecodeCache, cache_from_packed
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rows import PackedRows
from memocr_jax.sampling import sample_tokens
from memocr_jax.sharding import batch_shards, put_batch
from memocr_jax.types import Completion, Stop, VisionBatch


@dataclasses.dataclass(frozen=True)
class PromptGroup:
    """One shared prefix and the K prompts that continue it."""

    prefix: np.ndarray
    """i32[P]"""
    suffixes: tuple[np.ndarray, ...]
    """K arrays i32[S >= 1]"""
    keys: tuple[np.ndarray, ...]
    """K random keys u32[2], one for each sibling (`rng.row_key`)."""
    image: np.ndarray | None = None
    """u8[H, W, 3] inside the prefix, sides multiples of 28 px."""


class _Prompts(NamedTuple):
    """A batch of groups as arrays: rows of [P prefix slots | K x S suffix slots]."""

    tokens: Int32[Array, "Q L"]
    mrope_pos: Int32[Array, "Q 3 L"]
    segments: Int32[Array, "Q L"]
    image_slots: Int32[Array, "Q L"]
    vision: VisionBatch | None
    prefix_len: Int32[Array, Q]
    suffix_len: Int32[Array, "Q K"]
    next_pos: Int32[Array, "Q K"]
    keys: UInt32[Array, "Q K 2"]


class _Decoding(NamedTuple):
    """State of a batch between two tokens."""

    cache: DecodeCache
    last: Int32[Array, "Q K"]
    next_pos: Int32[Array, "Q K"]
    keys: UInt32[Array, "Q K 2"]
    tokens: Int32[Array, "Q K T"]
    logp: Float[Array, "Q K T"]
    lengths: Int32[Array, "Q K"]
    done: Bool[Array, "Q K"]
    sampled: Int32[Array, ""]
    """Tokens sampled per row so far, the same for all."""


class Engine:
    """Samples completions for groups of prompts on one mesh."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        model_config: Qwen25VLConfig,
        mesh: jax.sharding.Mesh,
        config: EngineConfig,
        eos_ids: Sequence[int],
    ):
        self.graphdef, self.model_config, self.mesh, self.config = graphdef, model_config, mesh, config
        self.eos_ids = tuple(eos_ids)
        self.sampled_tokens = 0
        """Completion tokens sampled since the engine was made."""
        self._start = jax.jit(
            functools.partial(_start, graphdef, self.eos_ids),
            static_argnames=("prefix_slots", "suffix_slots", "max_new_tokens", "sampling"),
        )
        self._decode = jax.jit(
            functools.partial(_decode, graphdef, self.eos_ids, config.decode_segment),
            static_argnames=("sampling",),
            donate_argnames=("state",),
        )

    def generate(
        self,
        params: nnx.State,
        groups: Sequence[PromptGroup],
        max_new_tokens: int,
        sampling: SamplingConfig,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Completion]]:
        """Complete every sibling of every group, in order. `progress` is told groups done and in all.

        A completion ends with a stop token (kept) or at `max_new_tokens`.
        """
        # Similar lengths share a batch, so that padding is small; results go back in the caller's order.
        order = sorted(range(len(groups)), key=lambda i: (len(groups[i].suffixes), len(groups[i].prefix)))
        results: list[list[Completion]] = [[] for _ in groups]
        done = 0
        for chosen in batches(len(order), self.config.groups):
            indices = [order[i] for i in chosen]
            completions = self._complete([groups[i] for i in indices], max_new_tokens, sampling, params)
            for i, completion in zip(indices, completions, strict=True):
                results[i] = completion
            done += len(indices)
            progress(done, len(groups))
        self.sampled_tokens += sum(len(c.tokens) for group in results for c in group)
        return results

    def _complete(
        self, groups: list[PromptGroup], max_new_tokens: int, sampling: SamplingConfig, params: nnx.State
    ) -> list[list[Completion]]:
        prompts, prefix_slots, suffix_slots = self._pack(groups)
        prompts = put_batch(prompts, self.mesh)
        state = self._start(
            params,
            prompts,
            prefix_slots=prefix_slots,
            suffix_slots=suffix_slots,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )
        while not bool(state.done.all()):
            state = self._decode(params, state=state, sampling=sampling)
        tokens, logp, lengths = jax.device_get((state.tokens, state.logp, state.lengths))
        return [
            [self._completion(tokens[q, k], logp[q, k], lengths[q, k]) for k in range(len(group.suffixes))]
            for q, group in enumerate(groups)
        ]

    def _completion(self, tokens: np.ndarray, logp: np.ndarray, length: int) -> Completion:
        tokens = tokens[:length].copy()
        stop = Stop.EOS if tokens[-1] in self.eos_ids else Stop.LENGTH
        return Completion(tokens=tokens, sampler_logp=logp[:length].copy(), stop=stop)

    def _pack(self, groups: list[PromptGroup]) -> tuple[_Prompts, int, int]:
        """The groups as arrays, with the number of prefix and suffix slots of a row."""
        multiple = self.config.length_multiple
        rows = bucket(len(groups), batch_shards(self.mesh))
        siblings = max(len(group.suffixes) for group in groups)
        prefix_slots = bucket(max(len(group.prefix) for group in groups), multiple)
        suffix_slots = bucket(max(len(s) for group in groups for s in group.suffixes), max(1, multiple // 4))
        images = [group.image for group in groups]
        windows = most_windows(images, self.model_config, self.config.window_multiple)
        vision, slots = image_rows(images, rows, windows, self.model_config)
        packed = PackedRows.empty(rows, prefix_slots + siblings * suffix_slots)
        prefix_len = np.zeros(rows, np.int32)
        suffix_len = np.ones((rows, siblings), np.int32)
        suffix_len[len(groups) :] = 0
        next_pos = np.zeros((rows, siblings), np.int32)
        keys = np.zeros((rows, siblings, 2), np.uint32)
        for q, group in enumerate(groups):
            starts = [prefix_slots + k * suffix_slots for k in range(len(group.suffixes))]
            grid = image_grid(group.image, self.model_config)
            following = packed.place(
                q, group.prefix, group.suffixes, starts, slots[q], grid, self.model_config
            )
            prefix_len[q] = len(group.prefix)
            for k, suffix in enumerate(group.suffixes):
                suffix_len[q, k] = len(suffix)
                next_pos[q, k] = following + len(suffix)
                keys[q, k] = group.keys[k]
            # Absent siblings of a smaller group are padding: length 0, done from the start.
            suffix_len[q, len(group.suffixes) :] = 0
        return (
            _Prompts(
                tokens=packed.tokens,
                mrope_pos=packed.mrope_pos.transpose(1, 0, 2),
                segments=packed.segments,
                image_slots=packed.image_slots,
                vision=vision,
                prefix_len=prefix_len,
                suffix_len=suffix_len,
                next_pos=next_pos,
                keys=keys,
            ),
            prefix_slots,
            suffix_slots,
        )


def image_grid(image: np.ndarray | None, config: Qwen25VLConfig) -> tuple[int, int] | None:
    """(rows, columns) of an image u8[H, W, 3] in patches, or None."""
    if image is None:
        return None
    patch = config.vision.patch_size
    return image.shape[0] // patch, image.shape[1] // patch


def most_windows(images: Sequence[np.ndarray | None], config: Qwen25VLConfig, multiple: int) -> int:
    """The number of windows that an executable for these images has; 0 when there are none."""
    counts = [num_windows(*image.shape[:2], config.vision) for image in images if image is not None]
    return bucket(max(counts), multiple) if counts else 0


def image_rows(
    images: Sequence[np.ndarray | None], rows: int, windows: int, config: Qwen25VLConfig
) -> tuple[VisionBatch | None, list[np.ndarray | None]]:
    """One vision row of `windows` windows for each prompt row, and the feature indices of each image.

    Returns (None, [None, ...]) when no row has an image. Raises ValueError when only some have: rows with and
    without images run as different executables.
    """
    present = [image for image in images if image is not None]
    if not present:
        return None, [None] * len(images)
    if len(present) != len(images):
        raise ValueError("rows with and without an image cannot share a batch")
    vision, slots = vision_batch(present, config.vision, windows=windows, rows=rows)
    return vision, list(slots)


def _start(
    graphdef, eos_ids, params, prompts: _Prompts, *, prefix_slots, suffix_slots, max_new_tokens, sampling
):
    """Prefill and the first token of every sibling."""
    model = nnx.merge(graphdef, params)
    rows, siblings = prompts.suffix_len.shape
    features = None if prompts.vision is None else model.encode_images(prompts.vision)
    slots = None if prompts.vision is None else prompts.image_slots
    embeds = model.embed(prompts.tokens, slots, features)
    hidden, (k, v) = model.hidden(
        embeds, prompts.mrope_pos.transpose(1, 0, 2), prompts.segments, return_kv=True
    )
    cache = cache_from_packed(
        k,
        v,
        prefix_slots=prefix_slots,
        siblings=siblings,
        suffix_slots=suffix_slots,
        capacity=suffix_slots + max_new_tokens,
        prefix_len=prompts.prefix_len,
        suffix_len=prompts.suffix_len,
    )
    ends = prefix_slots + jnp.arange(siblings) * suffix_slots + jnp.maximum(prompts.suffix_len, 1) - 1
    logits = model.head(jnp.take_along_axis(hidden, ends[:, :, None], axis=1))
    absent = prompts.suffix_len == 0
    state = _Decoding(
        cache=cache,
        last=jnp.zeros((rows, siblings), jnp.int32),
        next_pos=prompts.next_pos,
        keys=prompts.keys,
        tokens=jnp.zeros((rows, siblings, max_new_tokens), jnp.int32),
        logp=jnp.zeros((rows, siblings, max_new_tokens), jnp.float32),
        lengths=jnp.zeros((rows, siblings), jnp.int32),
        done=absent,
        sampled=jnp.zeros((), jnp.int32),
    )
    return _take_tokens(state, logits, sampling, eos_ids)


def _decode(graphdef, eos_ids, segment, params, *, state: _Decoding, sampling) -> _Decoding:
    """Up to `segment` further tokens, fewer when every row is done."""
    model = nnx.merge(graphdef, params)

    def more(carry):
        state, steps = carry
        return ~state.done.all() & (steps < segment)

    def one(carry):
        state, steps = carry
        positions = jnp.broadcast_to(state.next_pos, (3, *state.next_pos.shape))
        logits, cache = model.decode(state.last, positions, state.cache)
        state = state._replace(cache=cache, next_pos=state.next_pos + 1)
        return _take_tokens(state, logits, sampling, eos_ids), steps + 1

    return jax.lax.while_loop(more, one, (state, 0))[0]


def _take_tokens(state: _Decoding, logits: Float[Array, "Q K V"], sampling, eos_ids) -> _Decoding:
    """Sample the next token of every row that is not done."""
    rows, siblings, vocab = logits.shape
    tokens, logp = sample_tokens(
        logits.reshape(-1, vocab), state.keys.reshape(-1, 2), state.sampled, sampling, eos_ids
    )
    tokens, logp = tokens.reshape(rows, siblings), logp.reshape(rows, siblings)
    slot = state.sampled
    keep = ~state.done
    lengths = state.lengths + keep
    stopped = jnp.isin(tokens, jnp.array(eos_ids)) | (lengths >= state.tokens.shape[-1])
    return state._replace(
        last=tokens,
        tokens=state.tokens.at[:, :, slot].set(jnp.where(keep, tokens, 0)),
        logp=state.logp.at[:, :, slot].set(jnp.where(keep, logp, 0.0)),
        lengths=lengths,
        done=state.done | (keep & stopped),
        sampled=slot + 1,
    )
