"""Accelerators and how they are wired: the numbers that estimates of time and memory divide by.

Vendors' figures. TPU: Cloud TPU's system architecture pages and "How to Scale Your Model" (Austin et al.,
2025, chapter 2); GPU: NVIDIA's data sheets. HBM is what a program can use: for TPUs the compiler's own limit.
"""

from __future__ import annotations

import dataclasses
import math
import re

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.models.flops import peak_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as a program sees it (one JAX device)."""

    name: str
    kind: str
    """Beginning of JAX's `device_kind`."""
    hbm_bytes: float
    hbm_bytes_s: float
    link_bytes_s: float
    """What a device can send to its neighbours in a ring, both directions together (ICI, NVLink)."""
    network_bytes_s: float
    """The same, per device, between nodes (GPU) or slices (TPU, over the data centre's network)."""
    latency_s: float
    """Of one collective, whatever its size; an order of magnitude, not a measurement."""
    per_host: int
    """Devices of one process."""
    slice_devices: int = 0
    """Most devices of a slice (TPU); more are several slices."""

    @property
    def flops_s(self) -> float:
        """Peak dense bfloat16 operations per second."""
        return peak_flops(self.kind) or CPU_FLOPS_S


CPU_FLOPS_S = 1e11
"""A placeholder of the right order for a few cores: times for `cpu` say nothing about a machine."""

CHIPS = {
    chip.name: chip
    for chip in (
        # Between slices: what that book gives for the data centre's network, of one chip, one way.
        Chip("v4", "TPU v4", 31.25 * GIB, 1.2e12, 9e10, 3.1e9, 2e-6, 4, 4096),
        Chip("v5e", "TPU v5e", 15.75 * GIB, 8.1e11, 9e10, 3.1e9, 2e-6, 4, 256),
        Chip("v5p", "TPU v5p", 95.74 * GIB, 2.765e12, 1.8e11, 6.2e9, 2e-6, 4, 6144),
        Chip("v6e", "TPU v6e", 31.25 * GIB, 1.64e12, 1.8e11, 1.25e10, 2e-6, 4, 256),
        # A GPU's share that JAX may take is 92 % of the card less what the driver keeps.
        Chip("a100", "NVIDIA A100", 0.92 * 79.1 * GIB, 2.04e12, 3.0e11, 2.5e10, 1e-5, 8),
        Chip("h100", "NVIDIA H100", 0.92 * 79.1 * GIB, 3.35e12, 4.5e11, 5.0e10, 1e-5, 8),
        Chip("h200", "NVIDIA H200", 0.92 * 139.8 * GIB, 4.8e12, 4.5e11, 5.0e10, 1e-5, 8),
        Chip("cpu", "cpu", float("inf"), 2e10, 1e10, 1e10, 1e-5, 1),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind that train together."""

    chip: Chip
    shape: tuple[int, ...]
    """TPU: sides of the torus; GPU: (nodes, GPUs of a node); CPU: (devices,)."""
    slices: int = 1
    """TPU slices of that shape, joined by the data centre's network."""

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def per_process(self) -> int:
        """Devices of one process: those of a host."""
        return self.shape[-1] if self.is_gpu else min(self.devices, self.chip.per_host)

    @property
    def processes(self) -> int:
        return self.devices // self.per_process

    @property
    def within(self) -> int:
        """Devices that fast links join: those of a node (GPU) or of a slice (TPU)."""
        return self.per_process if self.is_gpu else math.prod(self.shape)

    @property
    def one_host(self) -> Topology:
        """The devices of one process as a topology of their own."""
        if not self.is_tpu or self.processes == 1:
            return Topology(self.chip, (1, self.per_process) if self.is_gpu else self.shape)
        return Topology(self.chip, (2, 2, 1)[: len(self.shape)])

    @property
    def is_tpu(self) -> bool:
        return self.chip.kind.startswith("TPU")

    @property
    def is_gpu(self) -> bool:
        return self.chip.kind.startswith("NVIDIA")

    def __str__(self) -> str:
        several = f"{self.slices} x " if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def ring_bytes_s(self, devices: int, across: bool = False) -> float:
        """Bytes per second that each of `devices` passes on in a ring, `across` nodes or slices."""
        inside = not across and (self.is_tpu or devices <= self.per_process)
        return self.chip.link_bytes_s if inside else self.chip.network_bytes_s

    def collective_s(self, kind: str, size: float, devices: int, across: bool = False) -> float:
        """Seconds of one collective over `devices`; its whole (gathered, reduced) value has `size` bytes."""
        if devices <= 1:
            return 0.0
        rounds = {"all-reduce": 2.0, "all-to-all": 0.5, "collective-permute": 0.5}.get(kind, 1.0)
        share = 1.0 if kind == "collective-permute" else (devices - 1) / devices
        return rounds * share * size / self.ring_bytes_s(devices, across) + self.chip.latency_s


def parse_topology(text: str) -> Topology:
    """`v5e:16x16`, `v5p:4x4x4` (chips), `h100:8x8` (nodes x GPUs), `cpu:1` to a Topology.

    Raises UserError for a chip that is not known or a shape that its slices do not have.
    """
    name, _, sides = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise UserError(f"--topology is {text!r}: chip {name!r} is not known{nearest(name, list(CHIPS))}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise UserError(f"--topology is {text!r}: after the chip comes its shape, such as {EXAMPLES[name]}")
    shape = tuple(int(side) for side in sides.split("x"))
    rank = len(EXAMPLES[name].partition(":")[2].split("x"))
    if len(shape) != rank:
        raise UserError(
            f"--topology is {text!r}: {name} has {rank} sides, such as {EXAMPLES[name]}"
            + (" (nodes x GPUs of a node)" if chip.kind.startswith("NVIDIA") else "")
        )
    return Topology(chip, shape)


def slice_of(chip: Chip, devices: int, per_node: int = 8) -> Topology:
    """The topology of so many devices: for a TPU the squarest slice, or several slices of the largest size.

    Raises UserError where the devices do not fill hosts, nodes or slices.
    """
    topology = Topology(chip, (devices,))
    if topology.is_gpu:
        per_node = min(per_node, devices)
        topology = Topology(chip, (devices // per_node, per_node))
    elif topology.is_tpu:
        slices = max(1, devices // chip.slice_devices)
        rank = len(EXAMPLES[chip.name].partition(":")[2].split("x"))
        topology = Topology(chip, _squarest(devices // slices, rank), slices)
    if topology.devices != devices or devices % topology.per_process:
        raise UserError(
            f"--scale: {devices} devices of {chip.name} do not fill hosts and slices; use 16, 64, ..."
        )
    return topology


def _squarest(count: int, rank: int) -> tuple[int, ...]:
    """Sides whose product is `count`, a power of two, as equal as can be, ascending."""
    power = count.bit_length() - 1
    return tuple(2 ** ((power + i) // rank) for i in range(rank))


EXAMPLES = {
    "v4": "v4:4x4x4",
    "v5e": "v5e:16x16",
    "v5p": "v5p:4x4x4",
    "v6e": "v6e:8x8",
    "a100": "a100:1x8",
    "h100": "h100:8x8",
    "h200": "h200:8x8",
    "cpu": "cpu:1",
}
