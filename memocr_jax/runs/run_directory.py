"""The run directory: configuration, metrics and TensorBoard events (docs/run_directory.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memocr_jax.config import Config, LogConfig, save_config
from memocr_jax.core.errors import UserError

METRICS = "metrics.jsonl"
"""Name of the file with computed numbers, one line a step. It is the same, byte for byte, however often a run
was interrupted."""
TIMING = "timing.jsonl"
"""Name of the file with times, one line a step."""


def prepare(run_dir: Path, fresh: bool) -> Path | None:
    """Make the run directory; with `fresh`, move what is there aside and return where it went.

    Raises UserError when the directory holds something that is not a run.
    """
    moved = None
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run.dir {run_dir}: is a file; name a directory")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"run.dir {run_dir}: holds files that are not a run's; name another directory")
        if fresh:
            n = next(n for n in range(1, 10**6) if not Path(f"{run_dir}.{n}").exists())
            moved = run_dir.rename(f"{run_dir}.{n}")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir {run_dir}: cannot be made ({error.strerror})") from error
    return moved


class RunLog:
    """Writes a run's metrics; what is after `step` from an earlier attempt is dropped.

    Use it as a context manager. `quiet`: write nothing (all processes but the first).
    """

    def __init__(self, run_dir: Path, config: Config, step: int, quiet: bool = False):
        self._dir, self._quiet = run_dir, quiet
        if quiet:
            return
        from tensorboardX import SummaryWriter

        save_config(config, run_dir / "config.yaml")
        for name in (METRICS, TIMING):
            _keep_lines_until(run_dir / name, step)
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1)
        self._wandb = _start_wandb(config, run_dir)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._quiet:
            return
        self._events.close()
        if self._wandb:
            self._wandb.finish()

    def metrics(
        self, step: int, metrics: Mapping[str, float | None], timing: Mapping[str, float | None]
    ) -> None:
        """Append a step to metrics.jsonl and timing.jsonl (flushed), TensorBoard and Weights & Biases."""
        if self._quiet:
            return
        for name, values in ((METRICS, metrics), (TIMING, timing)):
            with (self._dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        everything = {name: value for name, value in {**metrics, **timing}.items() if value is not None}
        for name, value in everything.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        if self._wandb:
            self._wandb.log(everything, step=step)


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines that an interrupted attempt wrote after the checkpoint, and a last line that was cut."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            break
    path.write_text("".join(kept), encoding="utf-8")


def _start_wandb(config: Config, run_dir: Path) -> Any:
    log: LogConfig = config.log
    if not log.wandb_project:
        return None
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb_project is {log.wandb_project!r}, but wandb is not installed: "
            "pip install 'memocr_jax[wandb]'"
        ) from error
    return wandb.init(project=log.wandb_project, name=run_dir.name, dir=str(run_dir), resume="allow")
