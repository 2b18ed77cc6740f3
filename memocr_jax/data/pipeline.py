"""The examples of training, step by step, made ahead of their use by a Grain pipeline.

Every step takes some questions, in an order that follows from the seed; every process takes its share of
each step's mini-batches. The documents of the questions to come are assembled and tokenised by threads or by
worker processes while the devices work. The examples of a step depend on neither of them, and a run can
continue at any step with another number of workers or processes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from memocr_jax.config import Config
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import QaExample

THREADS = 2
"""Threads that make examples when there are no worker processes."""
AHEAD_STEPS = 2
"""Steps whose examples are made ahead."""


class QuestionOrder:
    """Which questions each step takes: `order[step]` is i64[questions_per_step], indices into the examples.

    Every epoch is a new shuffle; questions left over at its end wait for the next one, so a step never takes
    a question twice. Any step, counted from 0, can be asked for directly.
    """

    def __init__(self, num_questions: int, questions_per_step: int, seed: int):
        """Raises UserError when there are fewer questions than a step takes."""
        if num_questions < questions_per_step:
            raise UserError(
                f"rl.questions_per_step: {questions_per_step}, but there are only {num_questions} questions; "
                "lower it or give more data"
            )
        self._dataset = (
            grain.MapDataset.range(num_questions)
            .seed(seed)
            .shuffle()
            .batch(questions_per_step, drop_remainder=True)
            .repeat()
        )
        self.steps_per_epoch = num_questions // questions_per_step
        self.depends_on = {
            "run.seed": seed,
            "number of questions": num_questions,
            "rl.questions_per_step": questions_per_step,
        }
        """Everything that the order depends on."""
        self._last: tuple[int, np.ndarray] | None = None

    def __getitem__(self, step: int) -> np.ndarray:
        # A step is asked for once for each of its questions, by threads that share this object.
        last = self._last
        if last is None or last[0] != step:
            self._last = last = step, self._dataset[step]
        return last[1]


def own_share(indices: Sequence[int], part: int, process: int, processes: int) -> list[int]:
    """The questions of a step that a process takes: its equal share of each mini-batch of `part` questions.

    Mini-batches hold the same questions whatever the number of processes, which must divide `part`.
    """
    share = part // processes
    starts = range(process * share, len(indices), part)
    return [index for start in starts for index in indices[start : start + share]]


class ExampleStream:
    """The examples of one process, one step after another. Steps are counted from 1.

    Args:
        examples: all of them; may be used by several threads, or be copied to worker processes.
        questions_per_step, minibatch_questions: of all processes together.
        seed: of the order of questions.
        workers: processes that make the examples; 0 means threads of this process.
        process, processes: which of how many training processes this is.
    """

    def __init__(
        self,
        examples: Sequence[QaExample],
        questions_per_step: int,
        minibatch_questions: int,
        seed: int,
        *,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        """Raises UserError when there are fewer questions than a step takes."""
        self.order = QuestionOrder(len(examples), questions_per_step, seed)
        self._share = len(own_share(range(questions_per_step), minibatch_questions, process, processes))
        make = _MakeExample(
            examples, self.order, self._share, minibatch_questions, process=process, processes=processes
        )
        self._dataset = grain.MapDataset.range(sys.maxsize).map(make)
        self._workers = workers
        self._made: grain.DatasetIterator | None = None
        self._next_step: int | None = None

    @classmethod
    def of_run(cls, config: Config, examples: Sequence[QaExample]) -> ExampleStream:
        """The stream of this process of a run."""
        return cls(
            examples,
            config.rl.questions_per_step,
            config.rl.minibatch_questions,
            config.run.seed,
            workers=config.data.workers,
            process=jax.process_index(),
            processes=jax.process_count(),
        )

    def start(self, step: int) -> None:
        """Begin to make the examples of `step` and of the steps after it."""
        self.close()
        rest = self._dataset[(step - 1) * self._share :]
        ahead = AHEAD_STEPS * self._share
        if self._workers:
            if not flags.FLAGS.is_parsed():
                # Grain passes absl's flags to its workers, and only absl's own command lines parse these.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._workers, -(-ahead // self._workers))
            made = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            made = made.mp_prefetch(options, worker_init_fn=_begin_work)
            # This prefetch thread starts the workers at once; Grain would start them at the first request.
            made = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=1)
        else:
            made = rest.to_iter_dataset(grain.ReadOptions(THREADS, ahead))
        self._made = iter(made)
        self._made.start_prefetch()
        self._next_step = step

    def take(self, step: int) -> list[QaExample]:
        """The examples of a step, mini-batch by mini-batch.

        Steps in a row have been made ahead; another step is entered as by `start`. Raises the UserError of a
        document that cannot be made.
        """
        if step != self._next_step:
            self.start(step)
        taken = [next(self._made) for _ in range(self._share)]
        self._next_step = step + 1
        for example in taken:
            if isinstance(example, UserError):
                raise example
        return taken

    def state(self, step: int) -> dict[str, Any]:
        """The state for `resume`, kept in the checkpoint after `step`.

        Grain's own state would bind a run to its number of workers; this does not.
        """
        return {**self.order.depends_on, "next_step": step + 1}

    def resume(self, state: Mapping[str, Any], step: int, run_dir: str) -> None:
        """Go on after `step` with what its checkpoint kept; in old runs that is less, or nothing.

        Raises UserError, naming the run, when the order of questions is no longer the same.
        """
        for name, now in self.order.depends_on.items():
            if state.get(name, now) != now:
                raise UserError(
                    f"{run_dir}: its checkpoint was made with {name} {state[name]}, now it is {now}, which "
                    "changes the order of questions; set it back, or use another --run.dir or --run.fresh"
                )
        self.start(state.get("next_step", step + 1))

    def close(self) -> None:
        """Stop making examples."""
        if self._made is not None:
            self._made.close()
        self._made = self._next_step = None

    def __enter__(self) -> ExampleStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _MakeExample:
    """Makes the example at a place of one process's stream (a class, so that workers can receive it)."""

    examples: Sequence[QaExample]
    order: QuestionOrder
    share: int
    minibatch_questions: int
    process: int
    processes: int

    def __call__(self, place: int) -> QaExample | UserError:
        step, number = divmod(int(place), self.share)
        indices = self.order[step].tolist()
        own = own_share(indices, self.minibatch_questions, self.process, self.processes)
        try:
            return self.examples[own[number]]
        except UserError as error:
            return error  # the stream raises it when the step is taken, also when a worker met it


def _begin_work(worker: int, workers: int) -> None:
    """Makes a worker leave signals to the training process, and end when that ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
