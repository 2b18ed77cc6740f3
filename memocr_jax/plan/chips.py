"""Accelerators and how they are wired: the numbers that estimates of time and memory divide by.

Vendors' figures. TPU: Cloud TPU's system architecture pages and "How to Scale Your Model" (Austin et al.,
2025, chapter 2); GPU: NVIDIA's data sheets.
"""

from __future__ import annotations

import dataclasses
import math
import re

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.core.gpu_memory import GPU_MEMORY_SHARE
from memocr_jax.models.flops import peak_flops

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as a program sees it (one JAX device)."""

    name: str
    kind: str
    """Beginning of JAX's `device_kind`."""
    example: str
    """A topology of such chips, for error messages."""
    hbm_bytes: float
    """Memory that programs can use: the compiler's limit (TPU), or JAX's share of the card (GPU)."""
    hbm_bytes_s: float
    link_bytes_s: float
    """Bytes per second from a device to its neighbours in a ring within a slice (ICI) or a node (NVLink)."""
    network_bytes_s: float
    """Bytes per second from a device over the network between nodes."""
    latency_s: float
    """Latency of one collective of any size; an order of magnitude, not a measurement."""
    per_host: int
    """Devices of one process."""

    @property
    def flops_s(self) -> float:
        """Peak dense bfloat16 operations per second."""
        return peak_flops(self.kind) or CPU_FLOPS_S


CPU_FLOPS_S = 1e11
"""A placeholder of the right order for a few cores: times for `cpu` say nothing about a machine."""

CARD = GPU_MEMORY_SHARE * GIB
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", "v4:4x4x4", 31.25 * GIB, 1.2e12, 9e10, 3.1e9, 2e-6, 4),
        Chip("v5e", "TPU v5e", "v5e:16x16", 15.75 * GIB, 8.1e11, 9e10, 3.1e9, 2e-6, 4),
        Chip("v5p", "TPU v5p", "v5p:4x4x4", 95.74 * GIB, 2.765e12, 1.8e11, 6.2e9, 2e-6, 4),
        Chip("v6e", "TPU v6e", "v6e:8x8", 31.25 * GIB, 1.64e12, 1.8e11, 1.25e10, 2e-6, 4),
        Chip("a100", "NVIDIA A100", "a100:1x8", 79.1 * CARD, 2.04e12, 3.0e11, 2.5e10, 1e-5, 8),
        Chip("h100", "NVIDIA H100", "h100:8x8", 79.1 * CARD, 3.35e12, 4.5e11, 5.0e10, 1e-5, 8),
        Chip("h200", "NVIDIA H200", "h200:8x8", 139.8 * CARD, 4.8e12, 4.5e11, 5.0e10, 1e-5, 8),
        Chip("b200", "NVIDIA B200", "b200:8x8", 179.0 * CARD, 7.7e12, 9.0e11, 5.0e10, 1e-5, 8),
        Chip("cpu", "cpu", "cpu:1", float("inf"), 2e10, 1e10, 1e10, 1e-5, 1),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind that train together."""

    chip: Chip
    shape: tuple[int, ...]
    """TPU: sides of the torus; GPU: (nodes, GPUs of a node); CPU: (devices,)."""

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    @property
    def per_process(self) -> int:
        """Devices of one process: those of a host."""
        return self.shape[-1] if self.is_gpu else min(self.devices, self.chip.per_host)

    @property
    def processes(self) -> int:
        return self.devices // self.per_process

    @property
    def within(self) -> int:
        """Devices that fast links join: those of a node (GPU) or of the slice (TPU)."""
        return self.per_process if self.is_gpu else self.devices

    @property
    def one_host(self) -> Topology:
        """The devices of one process as a topology of their own."""
        if self.is_gpu:
            return Topology(self.chip, (1, self.per_process))
        if self.processes == 1 or not self.is_tpu:
            return self
        return Topology(self.chip, (2, 2, 1)[: len(self.shape)])

    @property
    def is_tpu(self) -> bool:
        return self.chip.kind.startswith("TPU")

    @property
    def is_gpu(self) -> bool:
        return self.chip.kind.startswith("NVIDIA")

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    def collective_s(self, kind: str, size: float, devices: int, nodes: int = 1) -> float:
        """Seconds of one collective over `devices` on so many `nodes`; its whole (gathered, reduced) value
        has `size` bytes.

        Between nodes all devices that a group has on a node send at once, each over its own network card.
        """
        if devices <= 1:
            return 0.0
        chip = self.chip
        speed = chip.link_bytes_s
        if nodes > 1:
            speed = min(speed, chip.network_bytes_s * max(1, devices // nodes))
        rounds = {"all-reduce": 2.0, "all-to-all": 0.5, "collective-permute": 0.5}.get(kind, 1.0)
        share = 1.0 if kind == "collective-permute" else (devices - 1) / devices
        return rounds * share * size / speed + chip.latency_s


def parse_topology(text: str) -> Topology:
    """`v5e:16x16`, `v5p:4x4x4` (chips), `h100:8x8` (nodes x GPUs), `h100:8` (GPUs of one node), `cpu:1`.

    Raises UserError for a chip that is not known or a shape that it does not have.
    """
    name, _, sides = text.partition(":")
    chip = CHIPS.get(name)
    if chip is None:
        raise UserError(f"--topology is {text!r}: chip {name!r} is not known{nearest(name, list(CHIPS))}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides):
        raise UserError(f"--topology is {text!r}: after the chip comes its shape, such as {chip.example}")
    shape = tuple(int(side) for side in sides.split("x"))
    topology = Topology(chip, shape)
    if topology.is_gpu and len(shape) == 1:
        topology = Topology(chip, (1, *shape))
    rank = chip.example.count("x", len(name)) + 1
    if len(topology.shape) != rank:
        raise UserError(
            f"--topology is {text!r}: {name} has {rank} sides, such as {chip.example}"
            + (" (nodes x GPUs of a node)" if topology.is_gpu else "")
        )
    return topology
