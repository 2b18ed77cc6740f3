"""Times two programs in one process, in turns and warm, by wall and by processor time."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from memocr_jax.core.errors import UserError


class Times(NamedTuple):
    """Times of one run, in seconds."""

    wall: float
    processor: float
    """Processor seconds of all threads. On one core this is the wall time of an otherwise idle machine."""


def timed(run: Callable[[], Any]) -> Times:
    """Seconds of one call. The call must return only when its results are there."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Times(time.perf_counter() - wall, time.process_time() - processor)


def alternate(one: Callable[[], Times], other: Callable[[], Times], repeats: int) -> tuple[Times, Times]:
    """Medians of two timed functions that take turns, after one untimed run of each."""
    one(), other()
    pairs = [(one(), other()) for _ in range(repeats)]
    return tuple(
        Times(*(statistics.median(values) for values in zip(*times, strict=True)))
        for times in zip(*pairs, strict=True)
    )


def use_cores(count: int) -> None:
    """Keep this process, and so both models, to `count` cores; before JAX starts its threads."""
    import torch

    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise UserError(f"--cores is {count}, but there are {len(available)}")
    os.sched_setaffinity(0, available[-count:])
    torch.set_num_threads(count)


def machine(torch_device: str = "cpu") -> dict[str, Any]:
    """The machine and the versions that the numbers were measured with."""
    import torch
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "device": jax.devices()[0].device_kind,
        "torch_device": torch_device,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
