"""Operation of a long run: a log of each process, stacks when it hangs, profiles, and an account of its time.

Everything is written below the run directory: `logs/process_NNNN.log`, `stacks/process_NNNN.txt`,
`profile/`, `goodput.json` (process 0's account, over all attempts of the run).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from memocr_jax.config import Config
from memocr_jax.runs.goodput import Goodput
from memocr_jax.runs.process_log import ProcessLog
from memocr_jax.runs.profiler import Profiler
from memocr_jax.runs.watchdog import Watchdog

logger = logging.getLogger("memocr_jax")


class Operations:
    """Watches over one process of a run.

    In the loop: `begin(step)` before a step, `beat()` whenever something moved, `end(step, stages)` after it.
    """

    def __init__(self, config: Config, run_dir: Path, process: int | None = None):
        process = jax.process_index() if process is None else process
        self._log = ProcessLog(run_dir / "logs" / f"process_{process:04d}.log")
        self._watchdog = Watchdog(run_dir / "stacks" / f"process_{process:04d}.txt", config.health.hang_s)
        self._profiler = Profiler(run_dir / "profile", config.profile.steps)
        self.goodput = Goodput(run_dir / "goodput.json" if process == 0 else None)

    def __enter__(self) -> Operations:
        with contextlib.ExitStack() as stack:
            for part in (self._log, self._watchdog, self._profiler, self.goodput):
                stack.enter_context(part)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def beat(self) -> None:
        """Tell the watchdog that the run makes progress."""
        self._watchdog.beat()

    def begin(self, step: int) -> None:
        self._watchdog.beat()
        self._profiler.begin(step)
        self.goodput.begin_step()

    def end(self, step: int, stages: Mapping[str, float]) -> None:
        """`stages` are the seconds of the step by stage, from the stopwatch."""
        self._profiler.end(step)
        self.goodput.end_step(step, stages)
        self._watchdog.beat()
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in sorted(stages.items()))
        logger.info("step %d: %s", step, seconds)
