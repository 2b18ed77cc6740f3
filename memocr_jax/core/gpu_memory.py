"""How much of a GPU's memory JAX takes: commands ask for this share, and plans count with it."""

from __future__ import annotations

import os

GPU_MEMORY_SHARE = 0.92
"""Of the card. JAX would take 75 %. What is left is for the driver, NCCL's buffers and the libraries' own
memory: 6.3 GiB of 79.1."""


def claim_gpu_memory() -> None:
    """Ask for that share, unless the environment asks for another; before JAX starts its devices."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(os.environ):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_MEMORY_SHARE)
