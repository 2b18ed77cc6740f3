"""Several processes that train one model: who they are, and the few things on which they must agree.

Each process rolls out its own questions on its own devices and meets the others only at start-up, when a
step's micro-batches are packed, in the update itself and at the step's end. Every process must call these
functions, in the same order, from its main thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from memocr_jax.core.buckets import bucket
from memocr_jax.core.errors import UserError
from render.errors import CommandError

T = TypeVar("T")

DETECTION = {"slurm": "slurm", "tpu_vm": "gcetpu", "gke_tpu": "gketpu", "jobset": "k8s", "mpi": "ompi"}
"""`processes.launcher` -> the name by which jax.distributed knows that environment."""

TASKS_ON_A_HOST = {"slurm": "SLURM_STEP_TASKS_PER_NODE", "mpi": "OMPI_COMM_WORLD_LOCAL_SIZE"}
"""Launcher -> the environment variable that says how many of its tasks share a host ("1", "1(x8)")."""


@runtime_checkable
class ProcessesSettings(Protocol):
    """The section `processes` of the configuration."""

    launcher: str
    coordinator: str
    count: int
    index: int


@contextlib.contextmanager
def joined(settings: ProcessesSettings) -> Iterator[None]:
    """Join the other processes of this job, and leave them at the end. Call it before JAX uses a device.

    Raises UserError when the launcher's environment is not there.
    """
    if settings.launcher == "none":
        yield
        return
    if settings.launcher == "flags":
        arguments = {
            "coordinator_address": settings.coordinator,
            "num_processes": settings.count,
            "process_id": settings.index,
        }
    else:
        arguments = {"cluster_detection_method": DETECTION[settings.launcher]}
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"processes.launcher is {settings.launcher!r}, but the processes could not be joined: "
            f"{' '.join(str(error).split())}"
        ) from error
    tasks = os.environ.get(TASKS_ON_A_HOST.get(settings.launcher, ""), "")
    if tasks.partition("(")[0] == "1":
        # Under these launchers JAX shows a task the one GPU of its number; alone on a host it has them all.
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")
    try:
        yield
    finally:
        jax.distributed.shutdown()


def is_main() -> bool:
    """Whether this process is the first, which writes the run's files."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Give every process the values (anything JSON can hold) of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # JAX gathers through the devices, with transfers that are not explicit. The caller's transfer guard is
    # not meant for them.
    with jax.transfer_guard("allow"):
        sizes = process_allgather(np.array(len(data), np.int32))
        # Padded to few lengths: every new one would be a program of its own.
        padded = np.zeros(bucket(int(sizes.max()), 256), np.uint8)
        padded[: len(data)] = data
        texts = process_allgather(padded)
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def require_same(**values: Any) -> None:
    """Raise UserError, on every process, when one of the named values differs between processes."""
    # Through JSON and back, as the values of the other processes are.
    everyone = gather(json.loads(json.dumps(values)))
    for name in values:
        for process, theirs in enumerate(everyone):
            if theirs[name] != everyone[0][name]:
                raise UserError(
                    f"processes disagree on the {name}: {everyone[0][name]!r} on process 0, "
                    f"{theirs[name]!r} on process {process}; start all of them alike"
                )


def together(make: Callable[[], T]) -> T:
    """Call `make()` on every process; a UserError on one process is raised on all of them.

    A process that raised alone would leave the others waiting for it.
    """
    failure, made = None, None
    try:
        made = make()
    except CommandError as error:
        failure = error
    if jax.process_count() > 1:
        failures = gather(None if failure is None else str(failure))
        for process, text in enumerate(failures):
            if text is not None and failure is None:
                failure = UserError(f"process {process}: {text}")
    if failure is not None:
        raise failure
    return made


def code_version() -> str:
    """A hash of this package's sources: processes that run different code must not train together."""
    package = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
