"""An account of where the time of a run went."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from render.files import write_atomically

CATEGORIES = ("compile", "restore", "rollout", "render", "update", "validation", "checkpoint", "idle")
"""Where a run's wall-clock time goes."""

STAGES = {"draft": "rollout", "read": "rollout", "reshard": "rollout", "render_exposed": "render"}
"""Stages of the stopwatch -> category, where the names differ."""

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Goodput:
    """Seconds of a run by category, over all its attempts.

    Goodput is the share of the time that went into rollouts and updates of steps that counted; a step that
    was done again after a restart counts as lost the first time. Compilation inside a stage is taken out.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._attempts: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self._attempts = json.loads(path.read_text(encoding="utf-8"))["attempts"]
        self._current: dict[str, Any] = {"started": time.time(), "seconds": dict.fromkeys(CATEGORIES, 0.0)}
        self._current["steps"] = {}
        self._attempts.append(self._current)
        self._compiled = 0.0
        self._begun = time.perf_counter()

    def __enter__(self) -> Goodput:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self._write()

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            self._compiled += seconds

    @contextlib.contextmanager
    def stage(self, category: str) -> Iterator[None]:
        """Time that belongs to `category`, outside of the stopwatch's stages."""
        start, compiled = time.perf_counter(), self._compiled
        try:
            yield
        finally:
            spent = time.perf_counter() - start - (self._compiled - compiled)
            self._current["seconds"][category] += max(0.0, spent)

    def begin_step(self) -> None:
        self._at_begin = self._compiled

    def end_step(self, step: int, stages: Mapping[str, float]) -> None:
        seconds = self._current["seconds"]
        own = dict.fromkeys(CATEGORIES, 0.0)
        for name, value in stages.items():
            category = STAGES.get(name, name)
            own[category if category in own else "idle"] += value
        # What was compiled in this step was compiled in its longest stages, nearly always the first step's.
        compiling = self._compiled - self._at_begin
        for category in sorted(("rollout", "update", "validation"), key=lambda c: -own[c]):
            taken = min(compiling, own[category])
            own[category] -= taken
            compiling -= taken
        for category, value in own.items():
            seconds[category] += value
        self._current["steps"][str(step)] = own["rollout"] + own["update"]
        self._write()

    def summary(self) -> dict[str, Any]:
        """Seconds by category of all attempts, and the share that was good."""
        self._close_account()
        total = {c: sum(a["seconds"][c] for a in self._attempts) for c in CATEGORIES}
        kept: dict[str, float] = {}
        for attempt in self._attempts:  # the last attempt at a step is the one that counts
            kept.update(attempt["steps"])
        everything = sum(total.values())
        good = sum(kept.values())
        lost = total["rollout"] + total["update"] - good
        return {
            "goodput": good / everything if everything else None,
            "seconds": total,
            "lost_s": max(0.0, lost),
            "attempts": self._attempts,
        }

    def _close_account(self) -> None:
        """Count the time so far that belongs to no category as idle, and compilation as JAX reports it."""
        seconds = self._current["seconds"]
        seconds["compile"] = self._compiled
        wall = time.perf_counter() - self._begun
        seconds["idle"] = 0.0
        seconds["idle"] = max(0.0, wall - sum(seconds.values()))

    def _write(self) -> None:
        if self._path is None:
            return
        write_atomically(self._path, json.dumps(self.summary(), indent=1) + "\n")
