"""A run's programs, compiled by XLA for a topology that is not here."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from memocr_jax.config import Config
from memocr_jax.core.errors import UserError
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import abstract_like, local_mesh, make_mesh, param_shardings
from memocr_jax.engine import Engine
from memocr_jax.engine.lowering import lowered_programs
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.plan.chips import Topology
from memocr_jax.plan.hlo import Collective, program_cost, second_side
from memocr_jax.plan.model import Setting, State, limits_of, sharded_bytes
from memocr_jax.rl.update import Learner
from render.files import write_atomically


def topology_devices(topology: Topology) -> tuple[list[Any], list[Any]]:
    """(all devices, one process's) that programs can be compiled for: a TPU slice's from libtpu, or this
    machine's CPU. A host's devices are those of a slice of one host: libtpu compiles for whole slices.

    Raises UserError when libtpu is not installed or does not know the slice.
    """
    if not topology.is_tpu:
        devices = jax.devices("cpu")
        if len(devices) < topology.devices:
            raise UserError(
                f"--topology is {topology}: this machine shows {len(devices)} CPU devices; set "
                f"JAX_NUM_CPU_DEVICES={topology.devices} in the environment"
            )
        return devices[: topology.devices], devices[: topology.per_process]
    host = topology.one_host
    try:
        return tuple(
            list(topologies.get_topology_desc(platform="tpu", topology_name=str(part)).devices)
            for part in (topology, host)
        )
    except Exception as error:  # JaxRuntimeError, or whatever a libtpu that cannot be loaded raises
        raise UserError(
            f"--topology is {topology}: libtpu does not describe it ({' '.join(str(error).split())[:200]}); "
            "install it (pip install libtpu), choose a shape that Cloud TPU has, or use --arithmetic"
        ) from error


def stand_ins(topology: Topology) -> tuple[list[Any], list[Any]]:
    """As many CPU devices as the topology and one of its processes have: enough for shapes and layouts."""
    devices = jax.devices("cpu")
    return devices[: topology.devices], devices[: topology.per_process]


class Programs:
    """Abstract state and programs of a run on a topology.

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
        dtype = jnp.dtype(config.model.dtype)
        options = {
            "dtype": dtype,
            "attention": config.model.attention,
            "param_dtype": config.param_dtype,
        }
        split = config.engine.devices
        training = (
            [d for i, d in enumerate(devices) if i % topology.per_process >= split] if split else devices
        )
        self.mesh = make_mesh(config.mesh, training)
        _, abstract = abstract_model(model, mesh=self.mesh, **options)
        self.params = abstract_like(abstract, param_shardings(abstract, self.mesh))
        self.learner = Learner(config, model, self.mesh, self.params, Stopwatch())
        sampler_mesh = local_mesh(own[:split] if split else own, config.engine.tensor)
        sampler_graphdef, sampler = abstract_model(model, mesh=sampler_mesh, **options)
        placed = abstract_like(sampler, param_shardings(sampler, sampler_mesh))

        def cast(_: Any, variable: nnx.Variable) -> nnx.Variable:
            # As sharding.LocalCopy does it: matrices in the compute type, norms and biases as they are.
            x = variable.get_value()
            is_matrix = len([axis for axis in variable.logical_axes if axis != "layers"]) > 1
            return variable.replace(
                jax.ShapeDtypeStruct(x.shape, dtype if is_matrix else x.dtype, sharding=x.sharding)
            )

        self.sampler = nnx.map_state(cast, placed)
        self.engine = Engine(sampler_graphdef, model, sampler_mesh, config.engine, (model.image_token_id,))

    def state(self) -> State:
        """What lives on a device through a step."""
        learned = self.learner.abstract_state()
        adapters = self.config.train.trainable == "lora"
        reference = self.config.rl.kl_coef and not adapters
        # As sharding.LocalCopy has it: what has the type and the place already is not copied.
        same = lambda x, y: x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)  # noqa: E731
        copied = not jax.tree.all(jax.tree.map(same, self.params, self.sampler))
        whole = sharded_bytes(self.params)
        held = sharded_bytes(learned.params)
        return State(
            trained=held,
            frozen=whole if adapters else whole - held,
            gradients=held,
            optimizer=sharded_bytes(learned.opt_state),
            reference=held if reference else 0.0,
            sampler=sharded_bytes(self.sampler),
            merged=whole if adapters and copied else 0.0,
        )

    def lowered(self, setting: Setting) -> Iterator[tuple[str, Callable[[], Any]]]:
        """(name, function that lowers it) of every program, named as `model.programs_of` names them."""
        for number, kind in enumerate(setting.kinds):
            programs: dict[str, Any] = {}

            def of_rollout(name: str, kind=kind, programs=programs) -> Any:
                if not programs:
                    programs.update(lowered_programs(self.engine, self.sampler, limits_of(setting, kind)))
                return programs[name]

            def of_update(name: str, kind=kind, programs=programs) -> Any:
                if name not in programs:
                    programs.update(self.learner.lower(kind.row_shape(self.config, full=True)))
                return programs[name]

            rollout = ["vision"] if kind.patches else []
            for name in [*rollout, "prefill", "decode"]:
                yield f"{name} {kind.name}", lambda name=name, f=of_rollout: f(name)
            update = ["gradient"]
            if self.config.rl.old_logp == "recomputed" or self.config.rl.kl_coef:
                update.append("log-probabilities")
            for name in update:
                yield f"{name} {kind.name}", lambda name=name, f=of_update: f(name)
            if number == len(setting.kinds) - 1:
                yield "apply", lambda f=of_update: f("apply")


def compile_program(lowered: Any, topology: Topology, cache: Path | None) -> dict[str, Any]:
    """What XLA says of a program: memory, and its cost from the text (`hlo.program_cost`).

    What was compiled is kept in the folder `cache`, by the program's text and the compiler's version. A
    program that XLA refuses for its memory gives {"error": what it says, "peak_bytes": where it says so}; one
    whose text XLA cannot give has its memory alone.
    """
    text = lowered.as_text()
    version = f"{jax.__version__} {jax.lib.__version__} {os.environ.get('LIBTPU_INIT_ARGS', '')} {topology}"
    name = hashlib.blake2b((version + text).encode(), digest_size=16).hexdigest()
    path = None if cache is None else cache / f"{name}.json.gz"
    if path is not None and path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            known = json.load(file)
    else:
        known = _compile(lowered)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, gzip.compress(json.dumps(known).encode()))
    if "text" not in known:
        return known
    text = known.pop("text")
    cost = program_cost(text)
    return {
        **known,
        "second_side": second_side(text),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "collectives": [[c.kind, c.devices, c.count, c.bytes] for c in cost.collectives],
        "unknown_loops": cost.unknown_loops,
    }


def _compile(lowered: Any) -> dict[str, Any]:
    """The program's text and memory, or why XLA refuses it."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message and "memory" not in message.lower():
            raise
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", message)
        size = float(used.group(1)) * _UNITS[used.group(2)] if used else float("nan")
        return {"error": message[:500], "peak_bytes": size, "compile_s": time.perf_counter() - started}
    memory = compiled.memory_analysis()
    facts = {
        "compile_s": time.perf_counter() - started,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    # libtpu 0.0.51 cannot write down some programs for v5p: "async-update should have 1 operands".
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        facts["text"] = compiled.as_text()
    return facts


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def collectives_of(facts: dict[str, Any]) -> tuple[Collective, ...]:
    return tuple(Collective(kind, *numbers) for kind, *numbers in facts["collectives"])
