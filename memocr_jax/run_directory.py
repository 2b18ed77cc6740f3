"""What a run leaves behind: metrics, TensorBoard events, trajectories with pages (docs/run_directory.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memocr_jax.answers import boxed_answer
from memocr_jax.config import Config, LogConfig, save_config
from memocr_jax.errors import UserError
from memocr_jax.rl.rollout import Reading
from memocr_jax.rl.step import Rollout
from memocr_jax.tokenizer import Tokenizer
from memocr_jax.types import READ_KINDS, Turn
from render.views import image_tokens

METRICS = "metrics.jsonl"
"""What was computed, a line a step: the same, byte for byte, however often a run was interrupted."""
TIMING = "timing.jsonl"
"""What the clock said, a line a step."""


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
    """Writes a run's metrics and trajectories; what is after `step` from an earlier attempt is dropped.

    Use it as a context manager. `quiet`: write nothing (all processes but the first).
    """

    def __init__(self, run_dir: Path, config: Config, tokenizer: Tokenizer, step: int, quiet: bool = False):
        self._dir, self._log, self._tokenizer, self._quiet = run_dir, config.log, tokenizer, quiet
        if quiet:
            return
        from tensorboardX import SummaryWriter

        save_config(config, run_dir / "config.yaml")
        for name in (METRICS, TIMING):
            _keep_lines_until(run_dir / name, step)
        for path in (run_dir / "trajectories").glob("step_*.jsonl"):
            if _step_of(path) > step:
                _remove_trajectory(path)
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

    def trajectories(self, step: int, result: Rollout) -> None:
        """Write every turn of the step's first questions, and their pages and views as PNG."""
        if self._quiet or not self._log.trajectory_every_steps or step % self._log.trajectory_every_steps:
            return
        writer = _TrajectoryWriter(self._dir / "trajectories", step, result, self._tokenizer)
        writer.write(self._log.trajectory_questions)
        written = sorted((self._dir / "trajectories").glob("step_*.jsonl"), key=_step_of)
        for path in written[: -self._log.keep_trajectory_steps]:
            _remove_trajectory(path)


class _TrajectoryWriter:
    def __init__(self, directory: Path, step: int, result: Rollout, tokenizer: Tokenizer):
        self._directory, self._step, self._result, self._tokenizer = directory, step, result, tokenizer
        self._pages = f"pages/step_{step:06d}"

    def write(self, questions: int) -> None:
        (self._directory / self._pages).mkdir(parents=True, exist_ok=True)
        result = self._result
        lines = [
            self._draft(turn, memory)
            for memory in result.memories
            if memory.q < questions
            for turn in memory.drafts
        ]
        pages = {(memory.q, memory.g): memory for memory in result.memories}
        lines += [
            self._reading(reading, pages[reading.turn.q, reading.turn.g])
            for reading in result.readings
            if reading.turn.q < questions
        ]
        lines.sort(key=lambda line: (line["q"], line["g"]))  # stable: drafts stay before readings
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path = self._directory / f"step_{self._step:06d}.jsonl"
        partial = path.with_suffix(".tmp")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    def _draft(self, turn: Turn, memory) -> dict[str, Any]:
        scored = self._result.scores.scored[turn.q, turn.g].any()
        return {
            **self._common(turn, memory),
            "chunk": turn.chunk,
            "reward": None,
            "advantage": float(self._result.draft_advantage[turn.q, turn.g]),
            "weight": float(scored),
        }

    def _reading(self, reading: Reading, memory) -> dict[str, Any]:
        turn = reading.turn
        index = turn.q, turn.g, READ_KINDS.index(turn.kind)
        scored = bool(self._result.scores.scored[index])
        return {
            **self._common(turn, memory),
            "chunk": None,
            "asked": reading.asked,
            "expected": list(reading.expected),
            "prediction": boxed_answer(reading.text),
            "reward": float(self._result.scores.rewards[index]) if scored else None,
            "advantage": float(self._result.read_advantage[index]),
            "weight": float(scored),
            "view": {
                "file": self._image(turn.image, f"{memory.page.content_hash}_{turn.image.shape[0]}px"),
                "image_tokens": image_tokens(turn.image),
                "width_px": turn.image.shape[1],
                "height_px": turn.image.shape[0],
            },
        }

    def _common(self, turn: Turn, memory) -> dict[str, Any]:
        example = self._result.examples[turn.q]
        page = memory.page
        return {
            "step": self._step,
            "q": turn.q,
            "g": turn.g,
            "example_id": example.example_id,
            "question": example.question,
            "answers": list(example.answers),
            "evidence": list(example.evidence),
            "document_tokens": example.document_tokens,
            "n_chunks": len(example.chunks),
            "kind": str(turn.kind),
            "prompt": self._prompt_text(turn),
            "response": self._tokenizer.decode(turn.completion.tokens),
            "prompt_tokens": turn.prompt_tokens,
            "response_tokens": len(turn.completion.tokens),
            "stop": str(turn.completion.stop),
            "page": self._image(page.pixels, page.content_hash) if memory.readable else None,
            "page_status": str(page.status),
            "page_detail": page.detail,
            "view": None,
        }

    def _prompt_text(self, turn: Turn) -> str:
        ids = np.concatenate([turn.prefix, turn.suffix])
        # The run of placeholders reads as one <image>.
        pad = self._tokenizer.image_pad_id
        kept = ids[(ids != pad) | (np.roll(ids, 1) != pad)]
        text = self._tokenizer.decode(kept, skip_special=False)
        return text.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")

    def _image(self, pixels: np.ndarray, name: str) -> str:
        file = f"{self._pages}/{name}.png"
        if not (self._directory / file).exists():
            Image.fromarray(pixels).save(self._directory / file)
        return file


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop what an attempt that was cut short wrote after the checkpoint (and a line cut in the middle)."""
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


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _remove_trajectory(path: Path) -> None:
    shutil.rmtree(path.parent / "pages" / path.stem, ignore_errors=True)
    path.unlink()


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
