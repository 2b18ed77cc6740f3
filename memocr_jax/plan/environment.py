"""What must be set before JAX is imported. Imports nothing."""

from __future__ import annotations

import os


def prepare_environment(cpu_devices: int) -> None:
    """Compile on the CPU, for machines that are not here; show `cpu_devices` CPU devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cpu_devices))
    # libtpu would otherwise ask the cloud's metadata server which slice this machine is part of.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
