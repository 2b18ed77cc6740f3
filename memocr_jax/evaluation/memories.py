"""Final memories with their questions' evidence, from a run's trajectories or from an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from memocr_jax.core.errors import UserError
from memocr_jax.evaluation.journal import FINGERPRINT, FOLDER, Journal
from memocr_jax.runs.record import read_json_lines, read_run
from render.types import Mode


@dataclasses.dataclass(frozen=True)
class FinalMemory:
    """The memory after a question's last draft."""

    step: int
    example_id: str
    question: str
    text: str
    evidence: tuple[str, ...]
    mode: Mode = "markdown"


def read_memories(directories: Sequence[str | Path]) -> list[FinalMemory]:
    """All final memories of runs (their trajectories, every step) and evaluations (their checkpoint's step).

    Raises UserError for a directory that is neither, or that holds no memory.
    """
    found: list[FinalMemory] = []
    for directory in map(Path, directories):
        memories = _of_evaluation(directory) if (directory / FOLDER).is_dir() else _of_run(directory)
        if not memories:
            raise UserError(f"{directory}: holds no memory; name a run with trajectories, or an evaluation")
        found += memories
    return sorted(found, key=lambda memory: memory.step)


def _of_run(directory: Path) -> list[FinalMemory]:
    record = read_run(directory)
    agent = record.config.get("agent")
    mode = agent.get("memory_format", "markdown") if isinstance(agent, dict) else "markdown"
    found = []
    for step, path in record.turn_files.items():
        last: dict[tuple[int, int], dict] = {}
        for turn in read_json_lines(path)[0]:
            if turn.get("kind") == "DRAFT":
                key = (turn["q"], turn["g"])
                if key not in last or turn["chunk"] >= last[key]["chunk"]:
                    last[key] = turn
        found += [
            FinalMemory(
                step,
                turn["example_id"],
                turn["question"],
                turn["response"],
                tuple(turn.get("evidence") or ()),
                mode,
            )
            for turn in last.values()
        ]
    return found


def _of_evaluation(directory: Path) -> list[FinalMemory]:
    mark = json.loads((directory / FOLDER / FINGERPRINT).read_text(encoding="utf-8"))
    step, mode = mark.get("checkpoint step") or 0, mark.get("agent.memory_format", "markdown")
    return [
        FinalMemory(step, entry["results"][0]["id"], entry["question"], text, tuple(entry["evidence"]), mode)
        for entry in Journal(directory).finished().values()
        for text in entry["memories"]
    ]
