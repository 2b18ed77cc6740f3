"""The batches of a warm-up, prepared in a thread ahead of the updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from flax import nnx

from memocr_jax.agent.system import System
from memocr_jax.config import Config, WarmupStage
from memocr_jax.core.rng import host_rng
from memocr_jax.models.tokenizer import Tokenizer
from memocr_jax.rl.pack import Packing
from memocr_jax.sft.conversations import Conversations
from memocr_jax.sft.lessons import LessonKind, Lessons, Taught
from memocr_jax.sft.stages import Stages
from memocr_jax.sft.update import TaughtBatch, Teacher, pack_lesson
from render.base import Renderer

AHEAD = 2
"""Batches that are made before they are asked for."""


class ConversationBatches:
    """Batches of a user's own conversations, every epoch in a new order."""

    def __init__(self, config: Config, tokenizer: Tokenizer, packing: Packing):
        self._config, self._packing = config, packing
        self._conversations = Conversations(
            config.warmup.data, tokenizer, config.agent.budget_tokens, config.train.max_row_tokens
        )

    def batches(self, update: int) -> list[TaughtBatch]:
        """The batches of an update; updates are counted from 1."""
        rows, total = self._config.warmup.batch_rows, len(self._conversations)
        numbers = []
        for place in range((update - 1) * rows, update * rows):
            epoch, index = divmod(place, total)
            order = host_rng(self._config.run.seed, "conversations", epoch).permutation(total)
            numbers.append(int(order[index]))
        return pack_lesson("data", self._conversations.rows(numbers), self._packing)

    def check(self, teacher: Teacher, params: nnx.State) -> dict[str, float]:
        """No metrics: no conversations are held out."""
        return {}


class LessonBatches:
    """Batches of lessons, and a check on lessons of the validation split."""

    def __init__(self, config: Config, lessons: Callable[[str], Lessons], packing: Packing):
        self._config, self._packing = config, packing
        self._train, self._held_out = lessons("train"), lessons("validation")
        self._stages = Stages(config)
        names = dict.fromkeys(name for stage in self._stages.stages for name in stage.rows)
        self._kinds = {name: LessonKind.parse(name) for name in names}
        self._checked: dict[str, list[list[Taught]]] = {}

    def batches(self, update: int) -> list[TaughtBatch]:
        """The batches of an update; updates are counted from 1."""
        stage = self._stages.stage(update)
        return [
            batch
            for name, rows in stage.rows.items()
            for batch in pack_lesson(
                name, self._train.make(self._kinds[name], stage, update, rows), self._packing
            )
        ]

    def check(self, teacher: Teacher, params: nnx.State) -> dict[str, float]:
        """Share of completions that greedy sampling would give as taught, by lesson and region."""
        most = self._config.data.synthetic.facts
        metrics = {}
        for name, kind in self._kinds.items():
            if kind.name == "draft":  # the heading is drawn at random, so no single answer is right
                continue
            if name not in self._checked:
                self._checked[name] = self._held_out.make(
                    kind, WarmupStage(facts_min=most), 0, self._config.warmup.check_rows
                )
            for region, (good, number) in sorted(teacher.right(params, self._checked[name]).items()):
                metrics[f"check/{name}/{region}"] = good / number
        return metrics


def open_batches(
    config: Config, system: System, renderer: Renderer | None, packing: Packing
) -> ConversationBatches | LessonBatches:
    """The batches of a warm-up on `warmup.data`, or on lessons, whose pages `renderer` draws."""
    if config.warmup.data:
        return ConversationBatches(config, system.tokenizer, packing)

    def lessons(split: str) -> Lessons:
        return Lessons(
            config.data.synthetic,
            config.data.seed,
            config.run.seed,
            split,
            system.tokenizer,
            system.templates,
            config.agent,
            renderer,
        )

    return LessonBatches(config, lessons, packing)


def made_ahead(
    make: Callable[[int], list[TaughtBatch]], first: int, last: int
) -> Iterator[list[TaughtBatch]]:
    """`make(update)` for the updates `first` to `last`, made in a thread before it is asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        for update in range(first, last + 1):
            waiting.append(pool.submit(make, update))
            if len(waiting) > AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
