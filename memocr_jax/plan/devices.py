"""Descriptions of devices for the compiler alone: TPU slices by libtpu, GPUs by JAX's CUDA plugin."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from memocr_jax.core.errors import UserError
from memocr_jax.plan.chips import Topology


def prepare_environment(cpu_devices: int) -> None:
    """Run on the CPU, and show `cpu_devices` CPU devices; before JAX starts its devices.

    A process that has started its devices already keeps those.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    # libtpu would otherwise ask the cloud's metadata server which slice this machine is part of.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    import jax

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_devices)


def described_devices(topology: Topology) -> tuple[list[Any], list[Any]]:
    """(all devices, one process's) that programs can be compiled for where `has_compiler` says so.

    A host's devices are those of a topology of one host: compilers want whole topologies. Raises UserError
    when the compiler does not know the topology.
    """
    if not (topology.is_tpu or topology.is_gpu):
        return stand_ins(topology)
    from jax.experimental import topologies

    def describe(part: Topology) -> list[Any]:
        if part.is_tpu:
            return list(topologies.get_topology_desc(platform="tpu", topology_name=str(part)).devices)
        nodes, gpus = part.shape
        return list(
            topologies.get_topology_desc(
                platform="cuda", topology=f"1x{nodes}x{gpus}", target_config=TARGETS[part.chip.name]
            ).devices
        )

    try:
        devices = describe(topology)
        return devices, devices if topology.processes == 1 else describe(topology.one_host)
    except Exception as error:  # JaxRuntimeError, or whatever a library that cannot be loaded raises
        name = "libtpu" if topology.is_tpu else "JAX's CUDA plugin"
        raise UserError(
            f"--topology is {topology}: {name} does not describe it ({' '.join(str(error).split())[:200]}); "
            "choose a shape that exists, repair the installation, or use --arithmetic"
        ) from error


def has_compiler(topology: Topology) -> bool:
    """Whether the package is installed that compiles for these chips."""
    import importlib.util

    names = ("libtpu",) if topology.is_tpu else ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(name):
                return True
    return not (topology.is_tpu or topology.is_gpu)


def stand_ins(topology: Topology) -> tuple[list[Any], list[Any]]:
    """As many CPU devices as the topology and one of its processes have: enough for shapes and layouts."""
    import jax

    devices = jax.devices("cpu")
    return devices[: topology.devices], devices[: topology.per_process]


def _target(
    name: str,
    capability: str,
    cores: int,
    clock_ghz: float,
    memory_mib: int,
    memory_bytes_s: float,
    l2_mib: int,
    shared_kib: int,
) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto as text), by which it compiles without a driver."""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ {capability} }}
  core_count: {cores} fpus_per_core: {64 if capability == "major: 8" else 128} clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_mib * 2**20} memory_bandwidth: {memory_bytes_s:.0f}
  l2_cache_size: {l2_mib * 2**20}
  shared_memory_per_core: {(shared_kib + 1) * 1024} shared_memory_per_block_optin: {shared_kib * 1024}
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 28 patch: 1 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


TARGETS = {
    "a100": _target("NVIDIA A100-SXM4-80GB", "major: 8", 108, 1.41, 81038, 2.04e12, 40, 163),
    "h100": _target("NVIDIA H100 80GB HBM3", "major: 9", 132, 1.98, 80995, 3.35e12, 50, 227),
    "h200": _target("NVIDIA H200", "major: 9", 132, 1.98, 143155, 4.8e12, 50, 227),
    "b200": _target("NVIDIA B200", "major: 10", 148, 1.965, 183359, 7.7e12, 126, 227),
}
"""NVIDIA's figures of the cards (multiprocessors, clock, memory, caches)."""
