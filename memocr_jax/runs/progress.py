"""What a person sees while a command runs: where it is, how it goes, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from memocr_jax.config import Config

if TYPE_CHECKING:
    from memocr_jax.data.loader import Examples


class TrainProgress:
    """A bar with the stage under way, and one line for each finished step."""

    def __init__(self, steps: int, quiet: bool = False):
        self._console = Console(highlight=False, quiet=quiet)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            TextColumn("[dim]{task.fields[stage]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("train", total=steps, left="?", stage="starting")
        self._steps = steps
        self._times: list[float] = []

    def __enter__(self) -> TrainProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, done: int, total: int) -> None:
        """Show what is being done within the step."""
        self._progress.update(self._task, stage=f"{name} {done}/{total}")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, soft_wrap=True)

    def start(
        self,
        config: Config,
        run_dir: Path,
        parameters: int,
        examples: Examples,
        step: int,
        moved: Path | None,
    ) -> None:
        say = self._progress.console.print
        if moved:
            say(f"--run.fresh: what was in {run_dir} is now in {moved}")
        rl = config.rl
        say(
            f"{config.model.path}: {parameters / 1e6:,.2f}M parameters, {config.model.init} weights; "
            f"{config.data.source}: {len(examples):,} questions; "
            f"a step is {rl.questions_per_step} questions x {rl.group_size} memories",
            soft_wrap=True,
        )
        for problem in examples.problems:
            say(f"left out: {problem}", soft_wrap=True)
        if step:
            say(f"continuing {run_dir} after step {step}")
        self._progress.update(self._task, completed=step, stage="compiling the first step")
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
        show = lambda name: "  - " if metrics[name] is None else f"{metrics[name]:.2f}"  # noqa: E731
        self._progress.console.print(
            f"step {step:>4}/{self._steps}  reward std {show('reward/std')}  augM {show('reward/aug_m')}  "
            f"augQ {show('reward/aug_q')}  {timing['time/tokens_per_s']:6,.0f} tokens/s  "
            f"{timing['time/step_s']:5.1f} s  left {_duration(left)}",
            soft_wrap=True,
        )
        self._progress.update(self._task, completed=step, left=_duration(left), stage="")

    def finish(self, run_dir: Path, report: Path, step: int, stopped: int | None) -> None:
        self._progress.stop()
        say = self._console.print
        if stopped is not None:
            say(f"stopped after step {step}; the same command continues")
        say(f"results: {run_dir}", soft_wrap=True)
        say(f"report:  {report}", soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
