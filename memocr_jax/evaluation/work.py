"""The questions of an evaluation, and each process's part of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.config import Config, evaluation_sets
from memocr_jax.data.loader import Examples, load_examples
from memocr_jax.evaluation.journal import Journal, write_pages
from memocr_jax.evaluation.methods import answer_questions, waves
from memocr_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """One column of the table."""

    name: str
    length: str
    examples: Examples
    questions: int
    """Only the first so many of `examples` are asked."""


def load_sets(config: Config, tokenizer: Tokenizer) -> list[EvaluationSet]:
    """The sets of `config.eval`. Raises UserError for data that cannot be read."""
    sets = []
    for name, length, data in evaluation_sets(config):
        examples = load_examples(data, tokenizer, "validation")
        questions = min(config.eval.questions or len(examples), len(examples))
        sets.append(EvaluationSet(name, length, examples, questions))
    return sets


class EvaluationWork:
    """The questions of one process, wave by wave."""

    def __init__(
        self,
        config: Config,
        sets: list[EvaluationSet],
        journal: Journal,
        finished: Mapping[tuple[int, int], Any],
        process: int,
        processes: int,
    ):
        self.config, self.sets, self.journal, self.finished = config, sets, journal, finished
        self.own = [range(process, one.questions, processes) for one in sets]
        self.total = sum(map(len, self.own))
        self.left = sum((s, i) not in finished for s, own in enumerate(self.own) for i in own)

    def do(self, agent: Agent, params: nnx.State, wave_done: Callable[[EvaluationSet, int], None]) -> None:
        """Answer the questions that are not finished. A wave with some finished questions is answered again
        as a whole, so its batches and numbers are those of an evaluation that was never interrupted.

        `wave_done` is called with a set and how many more of its questions are finished.
        """
        for s, one in enumerate(self.sets):
            own = self.own[s]
            for wave in waves(len(own), self.config.eval, agent.engine.config.groups):
                places = [(s, own[k]) for k in wave]
                if all(place in self.finished for place in places):
                    continue
                examples = [one.examples[i] for _, i in places]
                answered = answer_questions(agent, params, examples, self.config.eval)
                new = 0
                for place, question in zip(places, answered, strict=True):
                    if place in self.finished:
                        continue
                    shown = self.config.eval.report_questions
                    if not shown or place[1] < shown:
                        write_pages(self.journal.directory, question.pages)
                    self.journal.append(place, question.entry(one.name, one.length))
                    new += 1
                wave_done(one, new)
