"""A program's memory, and the least time that it takes: the slowest of operations, memory, communication."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from memocr_jax.plan.chips import Topology
from memocr_jax.plan.cost import Collective


@dataclasses.dataclass(frozen=True)
class Facts:
    """Memory and work of one run of a program, on one device."""

    temporary_bytes: float
    """Its intermediate results, a library's workspace included."""
    output_bytes: float
    """Results that do not take an argument's place."""
    flops: float
    bytes: float
    """Read from and written to device memory."""
    collectives: tuple[Collective, ...] = ()
    argument_bytes: float = 0.0
    source: str = "arithmetic"
    """`compiled` by XLA for the topology, `memory compiled` (its work by arithmetic), or `arithmetic`."""
    error: str = ""
    """Why it could not be compiled."""
    compile_s: float = 0.0
    unknown_loops: int = 0
    """Loops whose number of turns the compiled program does not say; each is counted as one turn."""
    second_side: int | None = None
    """The largest n such that an array has two sides of n (`hlo.second_side`)."""


@dataclasses.dataclass
class Program:
    """One executable of a run."""

    name: str
    stage: str
    """draft, read or update."""
    shape: str
    runs: float
    """Runs in a step."""
    held_bytes: float
    """Its arguments and what else of their kind is on the device, whether it reads it or not (weights)."""
    beside_bytes: float
    """Bytes of other arrays on the device meanwhile (optimiser state, other copies of the weights)."""
    setting: str
    """The setting to change when it does not fit."""
    lower: Callable[[], Any]
    """Lowers it for the topology's devices."""
    estimate: Callable[[], Facts]
    """Its facts by arithmetic."""
    share: float = 1.0
    """Work of a usual run, as a share of the run of the largest shape, for which the facts are."""
    pairs: float = 0.0
    """(query, key) pairs of a row under its attention's mask (`cost.program_cost`)."""
    facts: Facts | None = None

    @property
    def argument_bytes(self) -> float:
        return max(self.held_bytes, self.facts.argument_bytes)

    @property
    def peak_bytes(self) -> float:
        """Most memory in use while it runs."""
        own = self.facts.temporary_bytes + self.facts.output_bytes
        return self.argument_bytes + own + self.beside_bytes

    def fits(self, topology: Topology) -> bool:
        return not self.facts.error and self.peak_bytes <= topology.chip.hbm_bytes

    def times(self, topology: Topology) -> dict[str, float]:
        """Seconds that operations, memory and communication each take at full speed, one usual run."""
        facts = self.facts
        communication = sum(
            c.count * topology.collective_s(c.kind, c.bytes / c.count, c.devices, c.nodes)
            for c in facts.collectives
        )
        return {
            "compute_s": self.share * facts.flops / topology.chip.flops_s,
            "memory_s": self.share * facts.bytes / topology.chip.hbm_bytes_s,
            "communication_s": communication,  # weights are gathered whatever the length of the rows
        }
