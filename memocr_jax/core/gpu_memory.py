"""How much of a GPU's memory JAX takes: commands ask for this share, and plans count with it."""

from __future__ import annotations

import os

GPU_MEMORY_SHARE = 0.92
"""The share of a card's memory that JAX takes; its own default is 75 %. The rest, 6.3 of 79.1 GiB, is for the
driver, NCCL's buffers and the libraries' own memory."""


def claim_gpu_memory() -> None:
    """Ask for that share, unless the environment asks for another. Call it before JAX starts its devices."""
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(os.environ):
        os.environ["XLA_CLIENT_MEM_FRACTION"] = str(GPU_MEMORY_SHARE)
