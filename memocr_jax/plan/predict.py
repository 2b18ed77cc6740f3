"""The plan of a run on a topology: what fits, how long a step takes, what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memocr_jax.config import Config
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.plan.chips import Topology
from memocr_jax.plan.compiled import compile_program
from memocr_jax.plan.programs import PlannedRun, State
from memocr_jax.plan.roofline import Program
from memocr_jax.plan.turns import loads_of
from memocr_jax.rl.health import require_equal_shares


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Values that the configuration does not have."""

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
    """Price of one chip for one hour; 0 means that no cost is given."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology."""

    topology: Topology
    assumptions: Assumptions
    state: State
    programs: list[Program]
    stages_s: dict[str, float]
    """Seconds of a step by stage."""
    sampled_tokens: float
    """Tokens sampled in a step, on all devices."""
    forward_flops: float
    """Operations of one forward pass over all turns of a step, on all devices."""
    update_passes: int
    """Forward passes that the gradient's operations are worth."""
    steps: int

    @property
    def step_s(self) -> float:
        return sum(self.stages_s.values())

    @property
    def hbm_bytes(self) -> float:
        """Most memory of a device in use at once."""
        return max(p.peak_bytes for p in self.programs)

    @property
    def fits(self) -> bool:
        return all(p.fits(self.topology) for p in self.programs)

    @property
    def update_mfu(self) -> float:
        """Operations that the gradient needs, over what the chips could have done in the update's time."""
        return self.update_passes * self.forward_flops / (self.stages_s["update"] * self._flops_s)

    @property
    def mfu(self) -> float:
        """The same over the whole step, the rollouts' operations included."""
        return (1 + self.update_passes) * self.forward_flops / (self.step_s * self._flops_s)

    @property
    def _flops_s(self) -> float:
        return self.topology.devices * self.topology.chip.flops_s

    def as_dict(self) -> dict[str, Any]:
        """The plan as data."""
        limit = self.topology.chip.hbm_bytes
        hours = self.step_s * self.steps * self.topology.devices / 3600
        return {
            "topology": str(self.topology),
            "devices": self.topology.devices,
            "processes": self.topology.processes,
            "source": sorted({p.facts.source for p in self.programs}),
            "assumptions": dataclasses.asdict(self.assumptions),
            "fits": self.fits,
            "hbm_bytes": self.hbm_bytes,
            "hbm_limit_bytes": limit if math.isfinite(limit) else None,
            "hbm_free_share": 1 - self.hbm_bytes / limit,
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

    def _executable(self, p: Program) -> dict[str, Any]:
        facts = dataclasses.asdict(p.facts)
        return {
            "stage": p.stage,
            "shape": p.shape,
            "fits": p.fits(self.topology),
            **facts,
            "error": p.facts.error or None,
            "argument_bytes": p.argument_bytes,
            "beside_bytes": p.beside_bytes,
            "peak_bytes": p.peak_bytes,
            **p.times(self.topology),
            "runs_per_step": p.runs,
            "usual_share": p.share,
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
        say: called with a line about each program before it is compiled.

    Raises:
        UserError: the mesh does not fit the topology, or a cache holds not even one group.
    """
    _require_whole_rows(config, topology)
    require_equal_shares(config, topology.processes)
    run = PlannedRun(config, model, topology, *map(list, devices))
    loads = loads_of(run.agent, config, topology.processes, assumptions.chunks, assumptions.fill)
    programs = run.programs(loads)
    for program in programs:
        if compiled(program.name):
            say(f"compiling {program.name} ({program.shape})")
            program.facts = compile_program(program, topology, cache)
        else:
            program.facts = program.estimate()
    return Plan(
        topology,
        assumptions,
        run.state,
        programs,
        _stages(config, topology, run.state, programs, assumptions),
        sum(load.sampled_tokens for load in loads),
        sum(load.forward_flops(model) for load in loads),
        {"all": 3, "decoder": 3, "lora": 2}[config.train.trainable],
        config.train.steps,
    )


def _stages(
    config: Config, topology: Topology, state: State, programs: Sequence[Program], assumptions: Assumptions
) -> dict[str, float]:
    """Seconds of a step by stage: each program's slowest part, by the share of it that is reached."""
    stages = {"reshard": 0.0, "draft": 0.0, "render": 0.0, "read": 0.0, "update": 0.0}
    for p in programs:
        stages[p.stage] += p.runs * max(p.times(topology).values()) / assumptions.efficiency
    if topology.devices > 1:
        # Every host receives all weights, over its devices' links together.
        whole = state.sampler * config.engine.tensor
        nodes = math.ceil(topology.devices / topology.within)
        stages["reshard"] = topology.collective_s("all-gather", whole, topology.devices, nodes)
    pages = config.rl.questions_per_step * config.rl.group_size / topology.processes
    draw = pages * assumptions.page_s / assumptions.host_cores
    # One wave is drawn while the next is drafted; the last wave's pages are waited for.
    stages["render"] = draw / max(1, min(config.rl.waves, pages / config.rl.group_size))
    return stages


def _require_whole_rows(config: Config, topology: Topology) -> None:
    own = topology.per_process - config.engine.devices
    if own % config.mesh.tensor:
        raise UserError(
            f"mesh.tensor is {config.mesh.tensor}, which does not divide the {own} devices that train of a "
            f"process of {topology}: a row of a batch would lie on several; choose a divisor"
        )
