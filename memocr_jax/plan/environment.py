"""What must be set before JAX starts its devices."""

from __future__ import annotations

import contextlib
import os


def prepare_environment(cpu_devices: int) -> None:
    """Compile on the CPU, for machines that are not here; show `cpu_devices` CPU devices.

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
