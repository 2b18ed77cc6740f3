"""Examples step by step, made ahead of their use: a Grain pipeline over `question_order`.

Every process takes its own share of each step's questions, so that all samples of a question are made in one
place. The stream is the same for any number of threads and workers, and can be entered at any step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from absl import flags

from memocr_jax.core.errors import UserError
from memocr_jax.core.types import QaExample
from memocr_jax.data.loader import question_order


@dataclasses.dataclass(frozen=True)
class StepExamples:
    """What one process has to do in one step."""

    step: int
    numbers: tuple[int, ...]
    """Places of the examples within the step's questions_per_step: process p has p, p + count, ..."""
    examples: tuple[QaExample, ...]


@dataclasses.dataclass(frozen=True)
class _Share:
    """Picks and makes one process's examples of a step (a class, so that worker processes can receive it)."""

    examples: Sequence[QaExample]
    process_index: int
    process_count: int

    def __call__(self, step: int, indices: np.ndarray) -> StepExamples:
        numbers = range(self.process_index, len(indices), self.process_count)
        return StepExamples(step, tuple(numbers), tuple(self.examples[int(indices[n])] for n in numbers))


def example_stream(
    examples: Sequence[QaExample],
    questions_per_step: int,
    seed: int,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    ahead: int = 4,
    workers: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator of `StepExamples`, beginning at `start_step`.

    `get_state()` and `set_state()` (or Grain's Orbax handler) save and restore its place. `ahead` steps are
    made by `threads` threads before they are asked for; with `workers` > 0 by that many processes instead,
    which pays where assembling and tokenising is slow. Raises `UserError` when the questions of a step do not
    divide over the processes.
    """
    if questions_per_step % process_count:
        raise UserError(
            f"rl.questions_per_step: {questions_per_step} questions do not divide over {process_count} "
            f"processes; use a multiple of {process_count}"
        )
    order = question_order(len(examples), questions_per_step, seed)
    steps = order.dataset.map_with_index(_Share(examples, process_index, process_count))
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    stream = steps[start_step:].to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            # Grain's worker pool reads its absl flags, which only absl's own command lines parse.
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        stream = stream.mp_prefetch(options)
    return iter(stream)
