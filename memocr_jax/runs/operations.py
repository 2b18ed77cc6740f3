"""What a long run on many hosts needs beside training: a log of each process, stacks when it hangs, profiles,
and an account of where the time went.

Everything is written below the run directory: `logs/process_NNNN.log`, `stacks/process_NNNN.txt`,
`profile/`, `goodput.json` (process 0's account, over all attempts of the run).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from memocr_jax.config import Config, profile_steps
from render.files import write_atomically

logger = logging.getLogger("memocr_jax")

CATEGORIES = ("compile", "restore", "rollout", "render", "update", "validation", "checkpoint", "idle")
"""Where a run's wall-clock time goes."""

STAGES = {"draft": "rollout", "read": "rollout", "reshard": "rollout", "render_exposed": "render"}
"""Stages of the stopwatch -> category, where the names differ."""

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


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
        """Something moved: the run does not hang."""
        self._watchdog.beat()

    def begin(self, step: int) -> None:
        self._watchdog.beat()
        self._profiler.begin(step)
        self.goodput.begin_step()

    def end(self, step: int, stages: Mapping[str, float]) -> None:
        """`stages` are the seconds that the stopwatch took in the step."""
        self._profiler.end(step)
        self.goodput.end_step(step, stages)
        self._watchdog.beat()
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in sorted(stages.items()))
        logger.info("step %d: %s", step, seconds)


class ProcessLog:
    """One file with everything that this process's libraries say, warnings and the error that ends it."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> ProcessLog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(self._path, encoding="utf-8", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._handler.setLevel(logging.INFO)
        root = logging.getLogger()
        root.addHandler(self._handler)
        # Our own steps go to the file alone, whatever others have attached to the root.
        self._before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self._handler)
        # With no other handler, warnings would no longer reach the terminal.
        self._terminal = logging.StreamHandler()
        self._terminal.setLevel(logging.WARNING)
        self._alone = len(root.handlers) == 1
        if self._alone:
            root.addHandler(self._terminal)
        logger.info(
            "process %d of %d on %s, pid %d, Python %s, jax %s, devices %s",
            jax.process_index(),
            jax.process_count(),
            platform.node(),
            os.getpid(),
            platform.python_version(),
            jax.__version__,
            ", ".join(str(device) for device in jax.local_devices()),
        )
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            logger.error("ended by %s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
        else:
            logger.info("ended")
        root = logging.getLogger()
        root.removeHandler(self._handler)
        logger.removeHandler(self._handler)
        if self._alone:
            root.removeHandler(self._terminal)
        logger.level, logger.propagate = self._before
        self._handler.close()


class Watchdog:
    """Writes the stacks of all threads to `path` when nothing moves for `limit_s` seconds (0: never), and
    ends the process with status 1, so that a launcher starts all of them anew.

    The timer is faulthandler's, a thread outside Python: it also works while an extension holds the lock.
    """

    def __init__(self, path: Path, limit_s: float):
        self._path, self._limit_s = path, limit_s
        self._file: TextIO | None = None

    def __enter__(self) -> Watchdog:
        if self._limit_s:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            self.beat()
        return self

    def beat(self) -> None:
        """Start waiting anew."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()
                with contextlib.suppress(OSError):  # another process has stacks there
                    self._path.parent.rmdir()


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
        """What no category has, up to now, was idle; compilation is what JAX says."""
        seconds = self._current["seconds"]
        seconds["compile"] = self._compiled
        wall = time.perf_counter() - self._begun
        seconds["idle"] = 0.0
        seconds["idle"] = max(0.0, wall - sum(seconds.values()))

    def _write(self) -> None:
        if self._path is None:
            return
        write_atomically(self._path, json.dumps(self.summary(), indent=1) + "\n")


def use_compilation_cache(directory: str) -> None:
    """Keep compiled programs in a folder (or bucket) that all processes and later runs share; empty leaves it
    to JAX_COMPILATION_CACHE_DIR."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def free_programs() -> None:
    """Free the programs of a training or evaluation that is over, before the next one in the same process.

    On a CPU each holds dozens of memory mappings, of which Linux gives a process 65,530; with none left XLA
    crashes.
    """
    gc.collect()
    jax.clear_caches()


def free_programs_if_many(share: float = 0.5) -> bool:
    """`free_programs` once this process has more than `share` of its memory mappings; returns whether it did.

    For a process that lives long and meets new shapes, between two pieces of work: what is needed again is
    compiled again, or comes from the persistent cache.
    """
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    except OSError:  # not Linux
        return False
    if used <= share * limit:
        return False
    logger.warning("%d of %d memory mappings are taken: compiled programs are freed", used, limit)
    free_programs()
    return True
