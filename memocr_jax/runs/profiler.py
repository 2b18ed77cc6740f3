"""A JAX profile of some steps of a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

from memocr_jax.config import profile_steps

logger = logging.getLogger("memocr_jax")


class Profiler:
    """Captures a JAX profile (TensorBoard, Perfetto) of the steps `first:last`, both included."""

    def __init__(self, directory: Path, steps: str):
        self._directory = directory
        self._range = profile_steps(steps)
        self._running = False

    def begin(self, step: int) -> None:
        if self._range is not None and step == self._range[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def end(self, step: int) -> None:
        if self._running and step >= self._range[1]:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        logger.info("profile of steps %d to %d: %s", *self._range, self._directory)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._stop()
