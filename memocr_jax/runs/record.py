"""Reads a run directory, also of a run in progress: half-written lines are left out and counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from memocr_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The contents of a run directory; turns are held as the names of their files."""

    run_dir: Path
    config: dict[str, Any]
    config_text: str
    about: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    """One object a step, steps ascending; of a step written twice, as after a resume, the later one."""
    turn_files: dict[int, Path]
    """Trajectory file of each step, steps ascending."""
    evaluation: dict[str, Any]
    """`evaluation/summary.json`, or empty."""
    notes: tuple[str, ...]
    """What could not be read; the report shows these lines."""


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Objects of a JSON-lines file and the number of lines that hold none.

    A missing file is an empty one: the run has not come that far.
    """
    if not path.is_file():
        return [], 0
    objects, skipped = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            skipped += 1
    return objects, skipped


def _read_object(path: Path, notes: list[str], parse: Any) -> dict[str, Any]:
    """The object in a JSON file; an empty one, with a note, when the file holds none."""
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read")
        return {}
    return value


def _is_step(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**53


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        UserError: there is no such directory, or it is not a run's.
    """
    run_dir = Path(run_dir)
    config_path = run_dir / "config.yaml"
    if not run_dir.is_dir():
        raise UserError(f"run directory: {run_dir} does not exist; give the directory of a run")
    if not config_path.is_file() and not (run_dir / "metrics.jsonl").is_file():
        raise UserError(f"run directory: {run_dir} has neither config.yaml nor metrics.jsonl; is it a run's?")
    notes: list[str] = []
    lines, skipped = read_json_lines(run_dir / "metrics.jsonl")
    if skipped:
        notes.append(f"metrics.jsonl: {skipped} unreadable line{'s' if skipped > 1 else ''} left out")
    times, skipped = read_json_lines(run_dir / "timing.jsonl")
    if skipped:
        notes.append(f"timing.jsonl: {skipped} unreadable line{'s' if skipped > 1 else ''} left out")
    by_step = {line["step"]: line for line in lines if _is_step(line.get("step"))}
    for line in times:
        if _is_step(step := line.get("step")) and step in by_step:
            by_step[step] = {**line, **by_step[step]}
    turn_files = {}
    for path in sorted((run_dir / "trajectories").glob("step_*.jsonl")):
        digits = path.stem.removeprefix("step_")
        if digits.isdigit():
            turn_files[int(digits)] = path
    return RunRecord(
        run_dir=run_dir,
        config=_read_object(config_path, notes, yaml.safe_load),
        config_text=config_path.read_text(encoding="utf-8", errors="replace")
        if config_path.is_file()
        else "",
        about=_read_object(run_dir / "about.json", notes, json.loads),
        metrics=tuple(by_step[step] for step in sorted(by_step)),
        turn_files=dict(sorted(turn_files.items())),
        evaluation=_read_object(run_dir / "evaluation" / "summary.json", notes, json.loads),
        notes=tuple(notes),
    )
