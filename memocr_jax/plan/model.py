"""Memory and work of a run's programs by arithmetic: for GPUs, and to compare settings quickly.

What XLA really makes of a program it says only when it compiles it; these formulas keep what is large: state,
stored layer inputs, the working set of one layer, the head's chunk, caches. All sizes are of one device.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memocr_jax.config import Config
from memocr_jax.engine.sizes import Kind as PromptKind
from memocr_jax.engine.sizes import PromptLimits
from memocr_jax.engine.sizes import plan as plan_prompts
from memocr_jax.models.attention import default_query_chunk
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import decoder_flops, head_flops, row_pairs, vision_flops
from memocr_jax.plan.chips import Topology
from memocr_jax.plan.hlo import Collective
from memocr_jax.plan.work import Kind


@dataclasses.dataclass
class Program:
    """One executable of a run: what one device holds and does in one run of it."""

    name: str
    stage: str
    """draft, read or update."""
    runs: float
    """Of a step."""
    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    argument_bytes: float
    temporary_bytes: float
    output_bytes: float
    """Results that do not take an argument's place."""
    beside_bytes: float
    """What else is on the device meanwhile (optimiser state, other copies of the weights)."""
    model_flops: float
    """Of `flops`, those that the mathematics needs (`models.flops`)."""
    shape: str
    source: str = "arithmetic"
    """`compiled` by XLA for the topology, `memory compiled` (its work by arithmetic), or `arithmetic`."""
    error: str = ""
    """Why it could not be compiled."""
    compile_s: float = 0.0
    kernel_flops: float = 0.0
    """Of `flops`, those in attention kernels, which XLA's text of a program does not show."""
    second_side: int | None = None
    """Of the compiled program: the largest n such that an array has two sides of n (`hlo.second_side`)."""
    setting: str = ""
    """What to change when it does not fit."""

    @property
    def peak_bytes(self) -> float:
        """Most memory in use while it runs."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.beside_bytes

    def times(self, topology: Topology) -> dict[str, float]:
        """Seconds that arithmetic, memory and communication each take at full speed, one run."""
        return {
            "compute_s": self.flops / topology.chip.flops_s,
            "memory_s": self.bytes / topology.chip.hbm_bytes_s,
            "communication_s": sum(
                c.count * topology.collective_s(c.kind, c.bytes / c.count, c.devices, c.across)
                for c in self.collectives
            ),
        }


@dataclasses.dataclass(frozen=True)
class State:
    """Bytes of one device that live through a step."""

    trained: float
    """Trained parameters, float32."""
    frozen: float
    gradients: float
    optimizer: float
    reference: float
    sampler: float
    """The rollouts' copy of the weights."""
    merged: float
    """Adapters merged into a copy of the base (LoRA), where that is not the rollouts' copy itself."""

    @property
    def training(self) -> float:
        return self.trained + self.frozen + self.optimizer + self.reference


def sharded_bytes(tree: Any, dtype: Any = None) -> float:
    """Bytes of one device's part of abstract arrays with shardings; `dtype` instead of that of matrices."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape))
            * (jnp.dtype(dtype).itemsize if dtype is not None and x.ndim > 1 else x.dtype.itemsize)
            for x in jax.tree.leaves(tree)
        )
    )


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run on a topology: all that the formulas need."""

    config: Config
    model: Qwen25VLConfig
    topology: Topology
    state: State
    kinds: list[Kind]

    @property
    def shards(self) -> int:
        """Devices that rows of a micro-batch are spread over."""
        return self.config.mesh.data * self.config.mesh.fsdp

    @property
    def rollout_shards(self) -> int:
        return self.rollout_devices // self.config.engine.tensor

    @property
    def rollout_devices(self) -> int:
        return self.config.engine.devices or self.topology.per_process


def limits_of(s: Setting, kind: Kind) -> PromptLimits:
    """The largest prompts of a kind, for the engine, and how many groups a process has at once."""
    waves = min(s.config.rl.waves, max(1, s.config.rl.questions_per_step // s.topology.processes))
    return PromptLimits(
        kind.name,
        kind.siblings,
        kind.prefix,
        kind.suffix,
        kind.completion,
        windows=kind.windows,
        groups=max(1, math.ceil(kind.groups / kind.rounds / s.topology.processes / waves)),
    )


def prompt_kind(s: Setting, kind: Kind) -> tuple[PromptKind, float]:
    """The engine's sizes for a kind, and the bytes of its cache on a device. Raises UserError."""
    text, tensor = s.model.text, s.config.engine.tensor
    shared = tensor if text.num_key_value_heads % tensor == 0 else 1
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim / shared
    slot *= jnp.dtype(s.config.model.dtype).itemsize
    found, _ = plan_prompts(limits_of(s, kind), s.model, s.config.engine, s.rollout_shards, slot)
    rows, groups = found.pools[0]
    return found, (rows * found.capacity + groups * found.prefix) / s.rollout_shards * slot


def programs_of(s: Setting, full: bool = False) -> list[Program]:
    """Every program of a step, by arithmetic. Raises UserError where a cache cannot hold one group.

    Memory is that of the largest shapes; work is that of mean lengths or, with `full`, of those shapes too.
    """
    found = []
    for kind in s.kinds:
        found += _rollout_programs(s, kind)
    for kind in s.kinds:
        found += _update_programs(s, kind, full)
    updates = s.config.rl.questions_per_step // s.config.rl.minibatch_questions
    state = s.state
    found.append(
        Program(
            "apply",
            "update",
            updates,
            0.0,
            # Adam reads gradient, parameter and two moments and writes three of them.
            state.gradients + 2 * (state.trained + state.optimizer),
            (),
            state.trained + state.gradients + state.optimizer,
            0.0,
            0.0,
            state.frozen + state.reference + state.sampler,
            0.0,
            "",
            setting="mesh.fsdp larger, or train.trainable decoder or lora",
        )
    )
    return found


def layer_sizes(model: Qwen25VLConfig) -> tuple[float, float]:
    """(parameters of one decoder layer, of the head's table)."""
    c = model.text
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = c.hidden_size * (2 * queries + 2 * keys) + 3 * c.hidden_size * c.intermediate_size
    return float(layer), float(c.hidden_size * c.vocab_size)


def _forward_set(s: Setting, rows: float, length: int, tensor: int) -> float:
    """Bytes of one layer's intermediate results in a forward pass over `rows` rows on a device."""
    c, width = s.model.text, jnp.dtype(s.config.model.dtype).itemsize
    tokens = rows * length
    heads = c.num_attention_heads / tensor
    mlp = 2 * tokens * c.intermediate_size / tensor * width
    attention = 3 * tokens * heads * c.head_dim * width
    if s.config.model.attention == "xla":
        # float32 scores and weights of a chunk of queries
        attention += 2 * rows * heads * min(default_query_chunk(length), length) * length * 4
    return 3 * tokens * c.hidden_size * width + max(mlp, attention)


def _update_programs(s: Setting, kind: Kind, full: bool) -> list[Program]:
    c, config, state = s.model.text, s.config, s.state
    width = jnp.dtype(config.model.dtype).itemsize
    tensor = config.mesh.tensor
    largest, usual = kind.row_shape(config, full=True), kind.row_shape(config, full)
    windows, length, sampled = largest[:3]
    mean_length, mean_sampled = usual.length, usual.sampled
    rows = config.train.micro_batch_rows / s.shards
    tokens = rows * length
    layer, head = layer_sizes(s.model)
    chunk = min(sampled, max(1, config.train.logp_chunk_tokens // config.train.micro_batch_rows))
    chunks = math.ceil(sampled / chunk)
    logits = rows * chunk * c.vocab_size / tensor * 4
    inputs = c.num_hidden_layers * tokens * c.hidden_size * width
    patches = windows * s.model.vision.window_patches
    vision_inputs = s.model.vision.depth * rows * patches * s.model.vision.hidden_size * width
    one = _forward_set(s, rows, length, tensor)
    weights = layer / tensor * width  # of a layer, gathered
    trained = {"all": 1.0, "decoder": 1.0, "lora": 0.0}[config.train.trainable]
    forward = max(one + weights, head / tensor * width + 2 * logits) + 2 * tokens * c.hidden_size * width
    backward = (
        inputs
        + vision_inputs
        + max(
            2 * one + weights + trained * layer / tensor * 4,
            head / tensor * (width + trained * 4) + 4 * logits,
        )
    )

    # Operations at mean lengths: that is what most micro-batches have.
    group_rows, siblings, row_tokens = kind.rows(config)
    own = round(kind.mean_suffix + kind.mean_completion)
    pairs = row_pairs(kind.prefix, [own] * siblings)
    useful = decoder_flops(s.model, round(row_tokens), pairs)
    useful += head_flops(s.model, round(siblings * kind.mean_completion))
    # Packed: masked scores are computed; aligned: siblings do not meet.
    scores = mean_length * (mean_length + 1) // 2
    if usual.siblings:
        scores = row_pairs(usual.prefix, [usual.own] * usual.siblings)
    done = decoder_flops(s.model, mean_length, scores)
    kernels = config.model.attention != "xla"
    queries = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    done += head_flops(s.model, mean_sampled)
    vision = vision_flops(s.model, kind.patches) if kind.patches else 0.0
    decoder_passes = {"all": 3, "decoder": 3, "lora": 2}[config.train.trainable]
    vision_passes = 3 if config.train.trainable == "all" else 1
    micro = math.ceil(kind.groups * group_rows / config.train.micro_batch_rows)
    layout = f" ({largest.prefix} + {largest.siblings} x {largest.own})" if largest.siblings else ""
    shape = f"{config.train.micro_batch_rows} x {length}{layout}" + (
        f", {windows} windows" if windows else ""
    )
    state_read = (state.trained + state.frozen) / 4 * width
    reads = (1 + chunks) / 2 * head / tensor * width

    def program(name: str, runs: float, passes: float, useful_passes: tuple[int, int], **memory: Any):
        gathered = layer * c.num_hidden_layers / tensor * width
        moved = passes * (
            gathered + reads + 12 * c.num_hidden_layers * rows * mean_length * c.hidden_size * width
        )
        scale = rows / tensor
        collectives = _collectives(s, rows * mean_length, passes, gathered, chunks * head / tensor * width)
        return Program(
            f"{name} {kind.name}",
            "update",
            runs,
            passes * scale * done + min(passes, 1 + vision_passes) * rows * vision,
            moved + state_read,
            collectives,
            kernel_flops=passes * scale * 4 * queries * scores if kernels else 0.0,
            model_flops=scale * (useful_passes[0] * useful + useful_passes[1] * vision),
            shape=shape,
            output_bytes=0.0,
            **memory,
        )

    weights_held = state.trained + state.frozen
    gradient = program(
        "gradient",
        micro,
        decoder_passes + 1,  # rematerialisation: one more forward pass
        (decoder_passes, vision_passes),
        argument_bytes=weights_held + state.gradients + tokens * 64,
        temporary_bytes=backward,
        beside_bytes=state.optimizer + state.reference + state.sampler,
        setting="train.max_row_tokens smaller, or mesh.tensor larger",
    )
    found = [gradient]
    updates = config.rl.questions_per_step // config.rl.minibatch_questions
    passes = (config.rl.old_logp == "recomputed" and updates > 1) + bool(config.rl.kl_coef)
    if passes:
        found.append(
            program(
                "log-probabilities",
                passes * micro,
                1,
                (0, 0),  # MFU counts what the gradient needs
                argument_bytes=weights_held + tokens * 64,
                temporary_bytes=forward,
                beside_bytes=state.optimizer + state.reference + state.sampler,
                setting="train.logp_chunk_tokens smaller, or mesh.tensor larger",
            )
        )
    return found


def _collectives(
    s: Setting, tokens: float, passes: float, gathered: float, head: float
) -> tuple[Collective, ...]:
    """Of `passes` passes over a device's `tokens`: weights gathered over fsdp, gradients scattered back,
    activations summed over tensor."""
    mesh, c = s.config.mesh, s.model.text
    width = jnp.dtype(s.config.model.dtype).itemsize
    found = []
    if mesh.fsdp > 1:
        gathers = min(passes, 3)  # forward, again for rematerialisation, backward
        found.append(
            Collective(
                "all-gather", mesh.fsdp, 7 * c.num_hidden_layers * gathers, gathers * (gathered + head)
            )
        )
        if passes > 1 and s.config.train.trainable != "lora":
            scattered = gathered + head
            found.append(
                Collective("reduce-scatter", mesh.fsdp, 7 * c.num_hidden_layers, scattered * 4 / width)
            )
    if mesh.data > 1 and passes > 1 and s.config.train.trainable != "lora":
        found.append(
            Collective(
                "all-reduce",
                mesh.data,
                7 * c.num_hidden_layers,
                gathered / mesh.fsdp * 4 / width,
                across=s.topology.devices // mesh.data >= s.topology.within,
            )
        )
    if mesh.tensor > 1:
        each = tokens * c.hidden_size * width
        count = 2 * c.num_hidden_layers * min(passes, 3)
        found.append(Collective("all-reduce", mesh.tensor, count, count * each))
    return tuple(found)


def _rollout_programs(s: Setting, kind: Kind) -> list[Program]:
    c, config, state = s.model.text, s.config, s.state
    tensor, width = config.engine.tensor, jnp.dtype(config.model.dtype).itemsize
    sizes, cache = prompt_kind(s, kind)
    shards = s.rollout_shards
    layer, head = layer_sizes(s.model)
    weights = (layer * c.num_hidden_layers + head) / tensor * width
    processes = s.topology.processes
    groups = kind.groups / kind.rounds / processes  # of a process and round, all waves
    pool_rows, _ = sizes.pools[0]
    length = kind.prefix + kind.siblings * kind.suffix
    together = sizes.prefill_groups[0]
    per_device = together / shards
    pairs = row_pairs(kind.prefix, [kind.suffix] * kind.siblings)
    useful_pairs = row_pairs(kind.prefix, [round(kind.mean_suffix)] * kind.siblings)
    useful = decoder_flops(s.model, round(kind.prefix + kind.siblings * kind.mean_suffix), useful_pairs)
    kv = (
        2
        * c.num_hidden_layers
        * c.num_key_value_heads
        * c.head_dim
        * width
        / min(tensor, c.num_key_value_heads)
    )
    stage = "read" if kind.name.startswith("read") else "draft"
    beside = state.training + state.merged

    def sums(tokens: float, count: int) -> tuple[Collective, ...]:
        each = tokens * c.hidden_size * width
        return () if tensor == 1 else (Collective("all-reduce", tensor, count, count * each),)

    found = []
    if kind.patches:
        patches = sizes.windows * s.model.vision.window_patches
        found.append(
            Program(
                f"vision {kind.name}",
                stage,
                kind.rounds * groups / together,
                per_device * vision_flops(s.model, patches),
                per_device * patches * s.model.vision.hidden_size * 12 * width * s.model.vision.depth,
                (),
                state.sampler + per_device * patches * 1176 * 4,
                12 * per_device * patches * s.model.vision.hidden_size * width,
                0.0,
                beside + cache,
                per_device * vision_flops(s.model, kind.patches),
                f"{together} x {sizes.windows} windows",
                setting="agent.budget_tokens or engine.prefill_tokens smaller",
            )
        )
    found.append(
        Program(
            f"prefill {kind.name}",
            stage,
            kind.rounds * math.ceil(groups / together),
            per_device
            / tensor
            * (decoder_flops(s.model, length, pairs) + head_flops(s.model, kind.siblings)),
            weights + per_device * length * 12 * c.num_hidden_layers * c.hidden_size * width,
            sums(per_device * length, 2 * c.num_hidden_layers),
            state.sampler,
            _forward_set(s, per_device, length, tensor),
            per_device * length * kv,
            beside + cache,
            per_device / tensor * useful,
            f"{together} x {length}",
            kernel_flops=per_device
            / tensor
            * 4
            * pairs
            * c.num_hidden_layers
            * c.num_attention_heads
            * c.head_dim
            if config.model.attention != "xla"
            else 0.0,
            setting="engine.prefill_tokens smaller, rl.group_size smaller, or engine.tensor larger",
        )
    )
    segment = config.engine.decode_segment
    rows = pool_rows / shards
    fills = max(1.0, groups * kind.siblings / pool_rows)
    # A pool that is filled once ends with its longest sample; refilled, it is busy for the mean's share.
    steps = kind.rounds * (
        kind.completion if fills == 1 else fills * kind.mean_completion + kind.completion / 2
    )
    context = kind.prefix + kind.mean_suffix + kind.mean_completion / 2
    own = kind.mean_suffix + kind.mean_completion / 2
    read_cache = (rows * own + rows / kind.siblings * kind.prefix) * kv
    flops = decoder_flops(s.model, 1, round(context)) + head_flops(s.model, 1)
    logits = rows * c.vocab_size * 4
    found.append(
        Program(
            f"decode {kind.name}",
            stage,
            steps / segment,
            segment * rows / tensor * flops,
            segment * (weights + read_cache + 4 * logits),
            sums(rows, segment * 2 * c.num_hidden_layers),
            state.sampler + cache,
            5 * logits + rows * c.num_attention_heads / tensor * (kind.prefix + sizes.capacity) * 8,
            0.0,
            beside,
            segment * rows / tensor * flops,
            f"{pool_rows} rows, {sizes.capacity} own slots, {segment} tokens",
            setting="engine.groups smaller, engine.cache_gib set, or engine.tensor larger",
        )
    )
    return found


def abstract_bytes(state: nnx.State) -> float:
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
