"""The programs of a run, made by the run's own parts from abstract arrays: no devices are needed."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.prompts import load_templates
from memocr_jax.config import Config
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import (
    abstract_like,
    batch_shards,
    local_mesh,
    make_mesh,
    param_shardings,
)
from memocr_jax.engine import Engine, PromptLimits
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import row_pairs
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.plan.arithmetic import Formulas
from memocr_jax.plan.chips import Topology
from memocr_jax.plan.roofline import Program
from memocr_jax.plan.turns import TurnLoad
from memocr_jax.rl.pack import Shape
from memocr_jax.rl.update import Learner


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


class PlannedRun:
    """A run's model, engine, learner and agent, without their memory.

    Args:
        devices: of the topology; also devices of another kind, for shapes and layouts alone.
        own: of one process.
    """

    def __init__(
        self,
        config: Config,
        model: Qwen25VLConfig,
        topology: Topology,
        devices: list[Any],
        own: list[Any],
    ):
        self.config, self.model, self.topology = config, model, topology
        split, each = config.engine.devices, topology.per_process
        if split:
            devices, own = [d for i, d in enumerate(devices) if i % each >= split], own[:split]
        mesh, sampler_mesh = make_mesh(config.mesh, devices), local_mesh(own, config.engine.tensor)
        dtype = jnp.dtype(config.model.dtype)
        options = {"dtype": dtype, "attention": config.model.attention, "param_dtype": config.param_dtype}
        _, abstract = abstract_model(model, mesh=mesh, **options)
        self.params = abstract_like(abstract, param_shardings(abstract, mesh))
        self.learner = Learner(config, model, mesh, self.params, Stopwatch())
        graphdef, sampler = abstract_model(model, mesh=sampler_mesh, **options)
        self.sampler = _cast(abstract_like(sampler, param_shardings(sampler, sampler_mesh)), dtype)
        known = Path(config.tokenizer.path).exists()
        tokenizer = load_tokenizer(config.tokenizer.path if known else "")
        self.engine = Engine(graphdef, model, sampler_mesh, config.engine, tokenizer.eos_ids)
        templates = load_templates(config.prompts.path)
        self.agent = Agent(self.engine, tokenizer, None, config.agent, 0, Stopwatch(), templates)
        self.formulas = Formulas(config, model)

    @functools.cached_property
    def state(self) -> State:
        """The arrays that stay on a device through a step."""
        start = self.learner.abstract_state()
        adapters = self.config.train.trainable == "lora"

        def same(x: Any, y: Any) -> bool:
            """Like sharding.LocalCopy: an array that has the type and the place already is not copied."""
            return x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)

        copied = not jax.tree.all(jax.tree.map(same, self.params, self.sampler))
        whole, held = sharded_bytes(self.params), sharded_bytes(start.params)
        return State(
            trained=held,
            frozen=whole if adapters else whole - held,
            gradients=held,
            optimizer=sharded_bytes(start.opt_state),
            reference=held if self.config.rl.kl_coef and not adapters else 0.0,
            sampler=sharded_bytes(self.sampler),
            merged=whole if adapters and copied else 0.0,
        )

    def programs(self, loads: list[TurnLoad]) -> list[Program]:
        """Every program of a step. Raises UserError where a cache cannot hold one group."""
        found = [program for load in loads for program in self._rollout(load)]
        found += [program for load in loads for program in self._update(load)]
        state, rl = self.state, self.config.rl
        shape, _, _ = loads[-1].rows(self.learner.packing)
        apply = Program(
            *("apply", "update", "", rl.questions_per_step // rl.minibatch_questions),
            held_bytes=state.trained + state.gradients + state.optimizer,
            beside_bytes=state.frozen + state.reference + state.sampler,
            setting="mesh.fsdp larger, or train.trainable decoder or lora",
            lower=lambda: self._lowered_update(shape)["apply"],
            estimate=lambda: self.formulas.apply(state.trained, state.optimizer),
        )
        return [*found, apply]

    def _rollout(self, load: TurnLoad) -> list[Program]:
        limits, formulas, state = load.limits, self.formulas, self.state
        sizes, fit = self.engine.plan(limits)
        shards = batch_shards(self.engine.mesh)
        slots = fit.rows * sizes.capacity + sizes.pools[0][1] * sizes.prefix
        cache = slots / shards * formulas.slot_bytes()
        together = sizes.prefill_groups[0]
        groups = load.groups / load.calls / self.topology.processes  # of one call
        length = limits.prefix_tokens + limits.siblings * limits.suffix_tokens

        @functools.cache
        def lowered(limits: PromptLimits) -> dict[str, Any]:
            return self.engine.lower(self.sampler, limits)

        def program(name: str, shape: str, runs: float, setting: str, estimate: Any, **more: Any) -> Program:
            values = {
                "held_bytes": state.sampler,
                "beside_bytes": state.training + state.merged + cache,
                "lower": lambda: lowered(limits)[name],
                **more,
            }
            place = f"{name} {load.name}", load.name.split()[0], shape, load.calls * runs
            return Program(*place, setting=setting, estimate=estimate, **values)

        vision = program(
            *("vision", f"{together} x {limits.windows} windows", groups / together),
            "agent.budget_tokens or engine.prefill_tokens smaller",
            lambda: formulas.vision(limits.windows, together / shards),
        )
        prefill = program(
            *("prefill", f"{together} x {length}", math.ceil(groups / together)),
            "engine.prefill_tokens smaller, rl.group_size smaller, or engine.tensor larger",
            lambda: formulas.prefill(limits, together / shards),
            pairs=row_pairs(limits.prefix_tokens, [limits.suffix_tokens] * limits.siblings),
        )
        # A pool that is filled once ends with its longest sample; refilled, it is busy for the mean's share.
        fills, steps = groups * limits.siblings / fit.rows, limits.max_new_tokens
        if fills > 1:
            steps = fills * load.mean_new_tokens + limits.max_new_tokens / 2
        # Few rows are decoded in a smaller pool; the warm-up runs the largest too.
        rows = min((n for n, _ in sizes.pools if n >= groups * limits.siblings), default=fit.rows)
        few = dataclasses.replace(limits, groups=math.ceil(rows / limits.siblings))
        segment = self.config.engine.decode_segment

        def decode(name: str, rows: int, runs: float, limits: PromptLimits) -> Program:
            share = cache * rows / fit.rows
            return program(
                *(name, f"{rows} rows, {sizes.capacity} own slots, {segment} tokens", runs),
                "engine.groups smaller, engine.cache_gib set, or engine.tensor larger",
                lambda: formulas.decode(limits, rows / shards, share),
                held_bytes=state.sampler + share,
                beside_bytes=state.training + state.merged,
                lower=lambda: lowered(limits)["decode"],
            )

        found = [vision, prefill] if limits.windows else [prefill]
        if rows < fit.rows:
            found += [decode("decode largest", fit.rows, 0.0, limits)]
        return [*found, decode("decode", rows, steps / segment, few if rows < fit.rows else limits)]

    def _update(self, load: TurnLoad) -> list[Program]:
        state, rl, train = self.state, self.config.rl, self.config.train
        shape, rows, share = load.rows(self.learner.packing)
        micro = math.ceil(rows / train.micro_batch_rows)
        text = f"{train.micro_batch_rows} x {shape.length}"
        text += f" ({shape.prefix} + {shape.siblings} x {shape.own})" if shape.siblings else ""
        text += f", {shape.windows} windows" if shape.windows else ""

        def program(name: str, runs: float, more: float, setting: str) -> Program:
            return Program(
                *(f"{name} {load.name}", "update", text, runs),
                held_bytes=state.trained + state.frozen + more,
                beside_bytes=state.optimizer + state.reference + state.sampler,
                setting=f"{setting} smaller, or mesh.tensor larger",
                lower=lambda: self._lowered_update(shape)[name],
                estimate=lambda: self.formulas.update(shape, backward=name == "gradient"),
                share=share,
                pairs=row_pairs(shape.prefix, [shape.own] * shape.siblings),
            )

        found = [program("gradient", micro, state.gradients, "train.max_row_tokens")]
        several = rl.questions_per_step // rl.minibatch_questions > 1
        passes = (rl.old_logp == "recomputed" and several) + bool(rl.kl_coef)
        if passes:
            found.append(program("log-probabilities", passes * micro, 0.0, "train.logp_chunk_tokens"))
        return found

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def _lowered_update(self, shape: Shape) -> dict[str, Any]:
        return self.learner.lower(shape)


def sharded_bytes(tree: Any) -> float:
    """Bytes of one device's part of abstract arrays with shardings."""
    return float(
        sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    )


def _cast(params: nnx.State, dtype: Any) -> nnx.State:
    """Like sharding.LocalCopy: matrices in the compute type, norms and biases as they are."""

    def cast(_: Any, variable: nnx.Variable) -> nnx.Variable:
        x = variable.get_value()
        is_matrix = len([axis for axis in variable.logical_axes if axis != "layers"]) > 1
        kind = dtype if is_matrix else x.dtype
        return variable.replace(jax.ShapeDtypeStruct(x.shape, kind, sharding=x.sharding))

    return nnx.map_state(cast, params)
