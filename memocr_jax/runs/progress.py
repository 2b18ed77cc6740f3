"""The terminal output of training: the step, its numbers and the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from memocr_jax.config import Config
from memocr_jax.core.progress import ProgressBar, duration

if TYPE_CHECKING:
    from memocr_jax.data.loader import Examples


class TrainProgress(ProgressBar):
    """A bar with the stage under way, and one line for each finished step."""

    def __init__(self, steps: int, quiet: bool = False):
        super().__init__("step", steps, console=Console(highlight=False), shown=not quiet)
        self.stage("starting")
        self._steps = steps
        self._times: list[float] = []

    def start(
        self,
        config: Config,
        run_dir: Path,
        parameters: int,
        examples: Examples,
        step: int,
        moved: Path | None,
    ) -> None:
        if moved:
            self.say(f"--run.fresh: what was in {run_dir} is now in {moved}")
        rl = config.rl
        self.say(
            f"{config.model.path}: {parameters / 1e6:,.2f}M parameters, {config.model.init} weights; "
            f"{config.data.source}: {len(examples):,} questions; "
            f"a step is {rl.questions_per_step} questions x {rl.group_size} memories",
        )
        for problem in examples.problems:
            self.say(f"left out: {problem}")
        if step:
            self.say(f"continuing {run_dir} after step {step}")
        self.update(step, left="?")
        self.stage("compiling the first step")
        self._last = time.perf_counter()

    def step(
        self, step: int, metrics: Mapping[str, float | None], timing: Mapping[str, float | None]
    ) -> None:
        """Report a finished step."""
        now = time.perf_counter()
        self._times.append(now - self._last)
        self._last = now
        # The first step compiles: it says nothing about the others.
        known = sorted(self._times[1:] or self._times)
        left = (self._steps - step) * known[len(known) // 2]

        def show(name: str) -> str:
            return "  - " if metrics[name] is None else f"{metrics[name]:.2f}"

        self.say(
            f"step {step:>4}/{self._steps}  reward std {show('reward/std')}  augM {show('reward/aug_m')}  "
            f"augQ {show('reward/aug_q')}  {timing['time/tokens_per_s']:6,.0f} tokens/s  "
            f"{timing['time/step_s']:5.1f} s  left {duration(left)}"
        )
        self.update(step, left=duration(left))
        self.stage("")

    def finish(self, run_dir: Path, report: Path, step: int, stopped: int | None) -> None:
        self.stop()
        if stopped is not None:
            self.say(f"stopped after step {step}; the same command continues")
        self.say(f"results: {run_dir}")
        self.say(f"report:  {report}")
