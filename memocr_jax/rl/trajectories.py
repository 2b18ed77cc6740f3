"""Every turn of some questions of a step, with their pages and views as PNG (docs/run_directory.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memocr_jax.agent.agent import Reading
from memocr_jax.agent.answers import boxed_answer
from memocr_jax.config import LogConfig
from memocr_jax.core.types import READ_KINDS, Turn
from memocr_jax.models.tokenizer import Tokenizer
from memocr_jax.rl.step import Rollout
from render.files import write_atomically
from render.views import image_tokens


class TrajectoryLog:
    """Writes trajectories below a run directory, and removes those of an earlier attempt after `step`.

    `quiet`: touch nothing (all processes but the first).
    """

    def __init__(self, run_dir: Path, log: LogConfig, tokenizer: Tokenizer, step: int, quiet: bool = False):
        self._directory, self._log, self._tokenizer = run_dir / "trajectories", log, tokenizer
        self._quiet = quiet
        if quiet:
            return
        for path in self._directory.glob("step_*.jsonl"):
            if _step_of(path) > step:
                _remove_trajectory(path)

    def write(self, step: int, result: Rollout) -> None:
        """Write the turns of the step's first questions, when this step is one whose turns are kept.

        Those of all but the newest `log.keep_trajectory_steps` steps are removed.
        """
        log = self._log
        if self._quiet or not log.trajectory_every_steps or step % log.trajectory_every_steps:
            return
        if log.keep_trajectory_steps:
            _TrajectoryWriter(self._directory, step, result, self._tokenizer).write(log.trajectory_questions)
        newest_first = sorted(self._directory.glob("step_*.jsonl"), key=_step_of, reverse=True)
        for path in newest_first[log.keep_trajectory_steps :]:
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
        write_atomically(path, text)

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


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _remove_trajectory(path: Path) -> None:
    shutil.rmtree(path.parent / "pages" / path.stem, ignore_errors=True)
    path.unlink()
