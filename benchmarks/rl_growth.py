"""How the seconds and the memory of a whole step grow: with K, with chunks, with the document's length."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from memocr_jax.agent.system import build_system
from memocr_jax.config import Config, load_config
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.data.loader import load_examples
from memocr_jax.rl.step import rollout, update
from memocr_jax.rl.update import Learner

ROOT = Path(__file__).resolve().parents[1]

AXES: dict[str, tuple[int, ...]] = {
    "siblings": (4, 8, 16),
    "chunks": (2, 4, 8, 16),
    "chunk_tokens": (160, 320),
}
"""The values of each axis; the other settings are as in `base`."""
BASE = {"siblings": 4, "chunks": 2, "chunk_tokens": 160}


def growth_results(args: Any, axes: dict[str, tuple[int, ...]] = AXES) -> dict[str, Any]:
    """`growth`: a list for each axis, of the seconds of a warm step by stage and its peak memory.

    The step is that of configs/tiny.yaml with two questions, Chromium included. The model is tiny, so these
    numbers show how the parts of a step grow, not what a step of a real model costs.
    """
    del args  # a step is timed once, after one of the same shapes
    with (
        tempfile.TemporaryDirectory() as cache,
        # Settings that need the same programs compile them once.
        _set("jax_compilation_cache_dir", cache),
        _set("jax_persistent_cache_min_compile_time_secs", 0.1),
    ):
        return _grow(axes)


@contextlib.contextmanager
def _set(name: str, value: Any) -> Iterator[None]:
    """A setting of JAX, put back at the end."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    reset_cache()  # whether there is a cache is otherwise decided once, at the first compilation
    try:
        yield
    finally:
        jax.config.update(name, before)
        reset_cache()


def _grow(axes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    done: dict[tuple[tuple[str, int], ...], dict[str, Any]] = {}
    results: dict[str, list[dict[str, Any]]] = {}
    for axis, values in axes.items():
        results[axis] = []
        for value in values:
            setting = {**BASE, axis: value}
            key = tuple(setting.items())
            if key not in done:
                done[key] = _measure(_config(**setting))
            results[axis].append({axis: value, **done[key]})
    return {"growth": {"base": BASE, **results}}


def _config(siblings: int, chunks: int, chunk_tokens: int) -> Config:
    config = load_config(ROOT / "configs" / "tiny.yaml")
    change = dataclasses.replace
    data = change(
        config.data,
        chunk_tokens=chunk_tokens,
        max_chunks=chunks,
        # A sentence has 9 to 14 tokens, a chunk about 11 of them: two thirds full, so that none is too long.
        synthetic=change(
            config.data.synthetic,
            questions=4,
            chunks=chunks,
            facts=2 * chunks,
            distractors=chunks,
            filler=chunks * (chunk_tokens // 14 - 3),
        ),
    )
    return change(
        config,
        model=change(config.model, path=str(ROOT / config.model.path)),
        data=data,
        rl=change(config.rl, group_size=siblings, questions_per_step=2, minibatch_questions=2),
        # Nothing is learned, so both steps sample the same tokens and need the same programs.
        optimizer=change(config.optimizer, learning_rate=0.0),
        train=change(config.train, max_row_tokens=8192),
    )


def _measure(config: Config) -> dict[str, Any]:
    """Measure the second of two equal steps, in which nothing is compiled."""
    stopwatch = Stopwatch()
    system = build_system(config)
    loaded = load_examples(config.data, system.tokenizer, "train")
    examples = [loaded[i] for i in range(config.rl.questions_per_step)]
    with system.agent(stopwatch) as agent:
        initial = system.initial_params()
        learner = Learner(config, system.model, system.mesh, initial, stopwatch)
        state = learner.init(initial)
        for _ in range(2):
            stopwatch.take()
            with _PeakMemory() as memory:
                started = time.perf_counter()
                policy = system.sampler_params(learner.policy_params(state))
                result = rollout(agent, policy, examples, config.rl, config.sampling, 1)
                sampled = time.perf_counter()
                (state, _, _), minibatches = update(learner, state, result, config.rl.minibatch_questions)
                jax.block_until_ready(state.params)
                ended = time.perf_counter()
    return {
        "step_s": ended - started,
        "rollout_s": sampled - started,
        "update_s": ended - sampled,
        "stages_s": {name: seconds for name, seconds in sorted(stopwatch.take().items())},
        "document_tokens": max(example.document_tokens for example in examples),
        "trained_tokens": sum(minibatch.tokens for minibatch in minibatches),
        "peak_gib": memory.gib,
        "peak_is_of": memory.source,
    }


class _PeakMemory:
    """The peak of memory while it is open: of the device where it reports it, else of the process.

    A process does not return all memory that it frees, so on a CPU the number is an upper bound.
    """

    def __enter__(self) -> _PeakMemory:
        self.gib = 0.0
        stats = jax.devices()[0].memory_stats()
        self.source = "device" if stats and "bytes_in_use" in stats else "process"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.gib = max(self.gib, self._now() / 2**30)
            if self._done.wait(0.02):
                return

    def _now(self) -> int:
        if self.source == "device":
            return jax.devices()[0].memory_stats()["bytes_in_use"]
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
