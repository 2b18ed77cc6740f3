"""Scores of the reader's answers: whether each is correct, and whether it could be scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from memocr_jax.agent.agent import Reading
from memocr_jax.agent.answers import boxed_answer, exact_match, list_match
from memocr_jax.core.types import READ_KINDS, QaExample, TurnKind


@dataclasses.dataclass(frozen=True)
class Scores:
    """Rewards per question, sample and objective (std, augM, augQ: `types.READ_KINDS`)."""

    rewards: Float[np.ndarray, "Q G A"]
    scored: Bool[np.ndarray, "Q G A"]
    """False: nothing to score (no page, no cloze, no answer); such an entry has weight 0 everywhere."""


def score_readings(examples: Sequence[QaExample], group_size: int, readings: Sequence[Reading]) -> Scores:
    """Reward 1 if the last boxed answer equals an accepted one after normalisation, else 0; the words of a
    cloze are compared blank by blank.

    A question without an accepted answer trains nothing: none of its readings counts as scored.
    """
    shape = (len(examples), group_size, len(READ_KINDS))
    rewards, scored = np.zeros(shape), np.zeros(shape, bool)
    for reading in readings:
        index = reading.turn.q, reading.turn.g, READ_KINDS.index(reading.turn.kind)
        match = list_match if reading.turn.kind == TurnKind.GAP_FILL else exact_match
        rewards[index] = match(boxed_answer(reading.text), reading.expected)
        scored[index] = bool(reading.expected) and bool(examples[reading.turn.q].answers)
    return Scores(rewards, scored)
