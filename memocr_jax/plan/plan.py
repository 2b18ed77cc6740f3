"""The plan of a run on a topology: what fits, how long a step takes, what it costs, and what would fit."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memocr_jax.config import Config, validate
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.plan import model as arithmetic
from memocr_jax.plan.chips import GIB, Topology
from memocr_jax.plan.model import Program, Setting
from memocr_jax.plan.programs import Programs, collectives_of, compile_program
from memocr_jax.plan.work import kinds_of


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the configuration does not say."""

    chunks: float
    """Chunks of a document."""
    fill: float = 0.5
    """Mean length of memories and answers, as a share of their limits."""
    efficiency: float = 0.6
    """Share of a program's bound (the slowest of arithmetic, memory and communication) that it reaches."""
    page_s: float = 0.1
    """Seconds of one core for one page: a long memory of 1,200 words (docs/render.md)."""
    host_cores: int = 32
    """Cores of a host that draw pages."""
    price: float = 0.0
    """Of one chip for one hour; 0 means that no cost is given."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology."""

    topology: Topology
    assumptions: Assumptions
    state: arithmetic.State
    programs: list[Program]
    stages_s: dict[str, float]
    """Seconds of a step by stage."""
    sampled_tokens: float
    """Of a step, all devices."""
    steps: int

    @property
    def step_s(self) -> float:
        return sum(self.stages_s.values())

    @property
    def hbm_bytes(self) -> float:
        """Most memory of a device in use at once."""
        return max((p.peak_bytes for p in self.programs if not math.isnan(p.peak_bytes)), default=0.0)

    @property
    def fits(self) -> bool:
        return all(not p.error and p.peak_bytes <= self.topology.chip.hbm_bytes for p in self.programs)

    @property
    def update_mfu(self) -> float:
        """Operations that the gradient needs, over what the chips could have done in the update's time."""
        useful = sum(p.runs * p.model_flops for p in self.programs if p.stage == "update")
        return useful / (self.stages_s["update"] * self.topology.chip.flops_s)

    @property
    def mfu(self) -> float:
        """The same over the whole step, the rollouts' operations included."""
        useful = sum(p.runs * p.model_flops for p in self.programs)
        return useful / (self.step_s * self.topology.chip.flops_s)

    def as_dict(self) -> dict[str, Any]:
        """The plan as data; infinite and unknown numbers are None."""
        chip = self.topology.chip
        hours = self.step_s * self.steps * self.topology.devices / 3600
        tree = {
            "topology": str(self.topology),
            "devices": self.topology.devices,
            "processes": self.topology.processes,
            "source": sorted({p.source for p in self.programs}),
            "assumptions": dataclasses.asdict(self.assumptions),
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_limit_bytes": chip.hbm_bytes,
            "hbm_free_share": 1 - self.hbm_bytes / chip.hbm_bytes,
            "state_bytes": dataclasses.asdict(self.state),
            "executables": {p.name: self._executable(p) for p in self.programs},
            "stages_s": self.stages_s,
            "step_s": self.step_s,
            "sampled_tokens": self.sampled_tokens,
            "tokens_per_s": self.sampled_tokens / self.step_s,
            "mfu": self.mfu,
            "update_mfu": self.update_mfu,
            "device_hours": hours,
            "cost": hours * self.assumptions.price if self.assumptions.price else None,
        }
        return _finite(tree)

    def _executable(self, p: Program) -> dict[str, Any]:
        return {
            "stage": p.stage,
            "source": p.source,
            "shape": p.shape,
            "fits": not p.error and p.peak_bytes <= self.topology.chip.hbm_bytes,
            "error": p.error or None,
            "argument_bytes": p.argument_bytes,
            "temporary_bytes": p.temporary_bytes,
            "output_bytes": p.output_bytes,
            "beside_bytes": p.beside_bytes,
            "peak_bytes": p.peak_bytes,
            "flops": p.flops,
            "bytes": p.bytes,
            "collectives": [dataclasses.asdict(c) for c in p.collectives],
            **p.times(self.topology),
            "runs_per_step": p.runs,
            "compile_s": p.compile_s,
            "second_side": p.second_side,
        }


def make_plan(
    config: Config,
    model: Qwen25VLConfig,
    topology: Topology,
    assumptions: Assumptions,
    devices: tuple[Sequence[Any], Sequence[Any]],
    *,
    compiled: Callable[[str], bool] = lambda name: True,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Plan a run.

    Args:
        devices: of the topology and of one process, or as many others when nothing is compiled.
        compiled: which programs XLA compiles; the others are by arithmetic.
        cache: folder that keeps what was compiled.
        say: is told each program before it is compiled.

    Raises:
        UserError: the mesh does not fit the topology, or a cache holds not even one group.
    """
    _require_divisible(config, topology)
    programs = Programs(config, model, topology, *map(list, devices))
    kinds = kinds_of(config, model, assumptions.chunks, assumptions.fill)
    setting = Setting(config, model, topology, programs.state(), kinds)
    table = {p.name: p for p in arithmetic.programs_of(setting)}
    full = {p.name: p for p in arithmetic.programs_of(setting, full=True)}
    for name, lower in programs.lowered(setting):
        if name not in table or not compiled(name):
            continue
        say(f"compiling {name} ({table[name].shape})")
        facts = compile_program(lower(), topology, cache)
        _use(table[name], full[name], facts)
    listed = list(table.values())
    return Plan(
        topology,
        assumptions,
        setting.state,
        listed,
        _stages(setting, listed, assumptions),
        sum(kind.sampled_tokens for kind in kinds),
        config.train.steps,
    )


def _use(program: Program, full: Program, facts: dict[str, Any]) -> None:
    """Replace what the arithmetic said by what XLA says.

    The update's programs are compiled for their longest rows and mostly run with rows of mean length: there
    the arithmetic is scaled by how far XLA's program is from it (`full`) at the compiled shape.
    """
    program.source, program.compile_s = "compiled", facts["compile_s"]
    if "error" in facts:
        program.error = facts["error"]
        if not math.isnan(facts["peak_bytes"]):
            program.temporary_bytes = facts["peak_bytes"] - program.argument_bytes - program.output_bytes
        return
    # Weights that a program does not read are none of its arguments, and are on the device all the same.
    program.argument_bytes = max(program.argument_bytes, float(facts["argument_bytes"]))
    program.temporary_bytes = float(facts["temporary_bytes"])
    program.output_bytes = float(facts["output_bytes"])
    if "flops" not in facts:
        program.source = "memory compiled"
        return
    program.second_side = facts["second_side"]
    scale = lambda mine, theirs, at: mine * theirs / at if at else theirs  # noqa: E731
    shorter = program.flops / full.flops if full.flops else 1.0
    program.flops = scale(program.flops, facts["flops"] + full.kernel_flops, full.flops)
    program.bytes = scale(program.bytes, facts["bytes"], full.bytes)
    # Weights are gathered whatever the length of the rows; all-reduces are mostly of activations.
    program.collectives = tuple(
        dataclasses.replace(c, bytes=c.bytes * (shorter if c.kind == "all-reduce" else 1.0))
        for c in collectives_of(facts)
    )


def _stages(setting: Setting, programs: Sequence[Program], assumptions: Assumptions) -> dict[str, float]:
    """Seconds of a step by stage: each program's slowest part, by the share of it that is reached."""
    stages = {"reshard": 0.0, "draft": 0.0, "render": 0.0, "read": 0.0, "update": 0.0}
    for p in programs:
        stages[p.stage] += p.runs * max(p.times(setting.topology).values()) / assumptions.efficiency
    topology, config = setting.topology, setting.config
    whole = setting.state.sampler * config.engine.tensor
    if topology.devices > 1:
        # Every host receives all weights, over its devices' links together.
        stages["reshard"] = whole / (topology.ring_bytes_s(topology.devices) * topology.per_process)
    pages = config.rl.questions_per_step * config.rl.group_size / topology.processes
    draw = pages * assumptions.page_s / assumptions.host_cores
    # One wave is drawn while the next is drafted; the last wave's pages are waited for.
    stages["render"] = draw / max(1, min(config.rl.waves, pages / config.rl.group_size))
    return stages


def _require_divisible(config: Config, topology: Topology) -> None:
    own = topology.per_process - config.engine.devices
    if own % config.mesh.tensor:
        raise UserError(
            f"mesh.tensor is {config.mesh.tensor}, which does not divide the {own} devices that train of a "
            f"process of {topology}: a row of a batch would lie on several; choose a divisor"
        )
    for name, value in {
        "rl.minibatch_questions": config.rl.minibatch_questions,
        "train.micro_batch_rows": config.train.micro_batch_rows,
    }.items():
        if value % topology.processes:
            raise UserError(
                f"{name} is {value}, which does not divide over the {topology.processes} processes of "
                f"{topology} (one for each host); the nearest that does is "
                f"{max(1, round(value / topology.processes)) * topology.processes}"
            )


def suggest(
    config: Config,
    model: Qwen25VLConfig,
    topology: Topology,
    assumptions: Assumptions,
    devices: tuple[Sequence[Any], Sequence[Any]],
    margin: float = 0.1,
) -> list[tuple[dict[str, Any], Plan]]:
    """Meshes, row lengths and chunk sizes that leave `margin` of the memory free by arithmetic, fastest
    first: (settings, plan)."""
    found = []
    count, own = topology.devices, topology.per_process
    kv_heads = model.text.num_key_value_heads
    tensors = [t for t in (1, 2, 4, 8) if t <= own and own % t == 0 and kv_heads % t == 0]
    lengths = (8192, 12288, 16384, 24576, 32768, 49152)
    for tensor, engine_tensor, length, groups in itertools.product(
        tensors, tensors, lengths, sorted({1, 2, 4, config.engine.groups})
    ):
        rows = count // tensor
        settings = {
            "mesh.data": 1,
            "mesh.fsdp": rows,
            "mesh.tensor": tensor,
            "engine.tensor": engine_tensor,
            "engine.groups": groups,
            "train.max_row_tokens": length,
            "train.micro_batch_rows": rows,
            "train.logp_chunk_tokens": 1024 * rows,
        }
        changed = with_settings(config, settings)
        try:
            validate(changed)
            plan = make_plan(changed, model, topology, assumptions, devices, compiled=lambda _: False)
        except UserError:
            continue  # what cannot be run is no suggestion
        if plan.hbm_bytes <= (1 - margin) * topology.chip.hbm_bytes:
            found.append((settings, plan))
    return sorted(found, key=lambda item: item[1].step_s)


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """`config` with fields of sections replaced: {"mesh.fsdp": 8}."""
    for name, value in settings.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def gib(size: float) -> str:
    return "?" if math.isnan(size) else f"{size / GIB:.2f}"
