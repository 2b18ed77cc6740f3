"""The work of one step for engine and learner: kinds of turns, their number, lengths and rows.

The longest prompts are those that training warms the engine up for (`Agent.prompt_limits`), and rows are laid
out by the packer itself (`rl.pack.micro_batches`), here for turns of modelled lengths.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.prompts import read_prompt
from memocr_jax.config import Config
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.engine import PromptLimits
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import decoder_flops, head_flops, row_pairs, vision_flops
from memocr_jax.rl.pack import Packing, Shape, WeightedTurn, micro_batches

GROUPS = 24
"""Groups of each kind whose lengths are drawn."""
SPREAD = 0.5
"""Sigma of the logarithm of completions' lengths."""


@dataclasses.dataclass(frozen=True)
class TurnLoad:
    """Turns of one kind in one step."""

    name: str
    """draft, read (std and augQ, which share a view) or read low (augM)."""
    limits: PromptLimits
    groups: float
    """Prefixes with their siblings, over all processes."""
    calls: float
    """Calls of the engine, one after the other: waves of questions, and chunk by chunk."""
    image_tokens: int
    new_tokens: np.ndarray
    """i64[GROUPS, siblings]: drawn lengths of completions."""
    suffix_tokens: int
    """Usual length of a sibling's own prompt."""

    @property
    def mean_new_tokens(self) -> float:
        return float(self.new_tokens.mean())

    @property
    def sampled_tokens(self) -> float:
        """Completion tokens of a step."""
        return self.groups * self.limits.siblings * self.mean_new_tokens

    def forward_flops(self, model: Qwen25VLConfig) -> float:
        """Operations that one forward pass over all turns of a step needs (`models.flops`)."""
        total = 0.0
        for lengths in self.new_tokens:
            own = [self.suffix_tokens + int(n) for n in lengths]
            pairs = row_pairs(self.limits.prefix_tokens, own)
            total += decoder_flops(model, self.limits.prefix_tokens + sum(own), pairs)
            total += head_flops(model, int(lengths.sum()))
        images = (
            vision_flops(model, self.image_tokens * model.vision.merge_unit) if self.image_tokens else 0.0
        )
        return self.groups * (total / len(self.new_tokens) + images)

    def rows(self, packing: Packing) -> tuple[Shape, float, float]:
        """How the packer lays these turns out: (the largest row, rows of a step, slots of a row on average
        as a share of the largest)."""
        packing = dataclasses.replace(packing, rows=1)
        drawn = [
            shape for shape, _ in micro_batches(self._turns(self.new_tokens, self.suffix_tokens), packing)
        ]
        possible = list(drawn)
        for eighths in range(1, 9):
            new, own = (n * eighths // 8 for n in (self.limits.max_new_tokens, self.limits.suffix_tokens))
            alike = np.full((1, self.limits.siblings), max(1, new))
            possible += [shape for shape, _ in micro_batches(self._turns(alike, max(1, own)), packing)]
        largest = max(possible, key=lambda shape: (shape.length, shape.sampled))
        slots = sum(shape.length for shape in drawn) / len(drawn)
        return largest, len(drawn) * self.groups / len(self.new_tokens), slots / largest.length

    def _turns(self, lengths: np.ndarray, suffix_tokens: int) -> list[WeightedTurn]:
        image = None
        if self.limits.windows:
            image = np.zeros(
                (112, 112 * self.limits.windows, 3), np.uint8
            )  # windows are 112 px wide and high
        suffix = np.zeros(suffix_tokens, np.int32)
        turns = []
        for q, group in enumerate(lengths):
            prefix = np.full(self.limits.prefix_tokens, q, np.int32)
            for g, n in enumerate(group):
                completion = Completion(np.zeros(n, np.int32), np.zeros(n, np.float32), Stop.EOS)
                turn = Turn(q, g, TurnKind.DRAFT, prefix, suffix, image, completion)
                turns.append(WeightedTurn(turn, 1.0))
        return turns


def loads_of(agent: Agent, config: Config, processes: int, chunks: float, fill: float) -> list[TurnLoad]:
    """The turns of a step.

    Args:
        processes: that share the questions.
        chunks: of a document.
        fill: mean length of what is sampled, and of prompts' own parts, as a share of the longest.
    """
    rl = config.rl
    waves = max(1, min(rl.waves, rl.questions_per_step // processes))
    memories = rl.questions_per_step * rl.group_size
    template, _ = agent.tokenizer.encode_prompt(read_prompt("", agent.templates), [1])
    random = np.random.default_rng(0)
    kinds = (
        ("draft", rl.questions_per_step * chunks, waves * math.ceil(chunks)),
        ("read", memories, waves),
        ("read low", memories, waves),
    )
    found = []
    limits = agent.prompt_limits(rl.group_size, config.data.chunk_tokens, config.render)
    for (name, groups, calls), most in zip(kinds, limits, strict=True):
        mean = math.log(fill * most.max_new_tokens) - SPREAD**2 / 2
        drawn = random.lognormal(mean, SPREAD, (GROUPS, most.siblings))
        found.append(
            TurnLoad(
                name,
                most,
                groups,
                calls,
                most.prefix_tokens - len(template) + 1 if most.windows else 0,
                np.clip(drawn, 1, most.max_new_tokens).astype(np.int64),
                max(1, round(fill * most.suffix_tokens)),
            )
        )
    return found
