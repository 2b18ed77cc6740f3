"""Answers validation questions during training, with the code of `evaluate`."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.system import System
from memocr_jax.config import Config, EvalConfig
from memocr_jax.core.metrics import Metrics, Stopwatch
from memocr_jax.core.processes import gather
from memocr_jax.core.types import QaExample
from memocr_jax.data.loader import load_examples
from memocr_jax.evaluation.methods import evaluate_examples


class Validation:
    """Answers the questions of section `validation` at its budgets, each process its share of them."""

    def __init__(self, config: Config, system: System, agent: Agent):
        self._config, self._system = config, system
        self._stopwatch = agent.stopwatch
        self._agent = dataclasses.replace(agent, stopwatch=Stopwatch())  # its stages are not the step's
        settings = config.validation
        self._evaluation = EvalConfig(
            budgets=settings.budgets,
            methods=("visual memory",),
            samples=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        self._examples: list[QaExample] | None = None

    def __call__(self, policy: nnx.State) -> dict[str, float | None]:
        """Accuracy over all processes' questions, by budget and on average; failures count as wrong."""
        if self._examples is None:
            self._examples = self._own_examples()
        with self._stopwatch("validation"):
            params = self._system.sampler_params(policy)
            results = evaluate_examples(self._agent, params, self._examples, self._evaluation)
            metrics = Metrics()
            for result in results:
                metrics.mean("validation/accuracy", result["em"])
                metrics.mean(f"validation/accuracy_{result['budget']}", result["em"])
                metrics.count("validation/failed", result["image_tokens"] is None)
            return Metrics.merged(gather(metrics.parts())).as_dict()

    def _own_examples(self) -> list[QaExample]:
        examples = load_examples(self._config.data, self._system.tokenizer, "validation")
        count = min(self._config.validation.questions or len(examples), len(examples))
        return [examples[i] for i in range(jax.process_index(), count, jax.process_count())]
