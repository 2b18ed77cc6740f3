"""One training step of MemOCR (arXiv 2601.21468), top to bottom.

A question comes with a document far longer than the model's context. The model reads it chunk by chunk and
keeps a Markdown memory; the memory is drawn as a page; the model answers by looking at the page:

    draft -> render -> read (three ways) -> score -> advantages -> pack -> update

Left out of this file on purpose: progress, logging and checkpoints (`train.py`), how tokens are sampled
(`engine.py`) and how the gradient is computed (`update.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from memocr_jax.buckets import batches
from memocr_jax.config import RLConfig, SamplingConfig
from memocr_jax.rl.advantages import draft_advantages, group_advantages, read_advantages
from memocr_jax.rl.pack import WeightedTurn, pack_turns
from memocr_jax.rl.rewards import Scores, score_readings
from memocr_jax.rl.rollout import Agent, Memory, Reading
from memocr_jax.rl.update import Learner, TrainState
from memocr_jax.types import READ_KINDS, QaExample


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Everything that was sampled for a step's questions, with what it earned."""

    examples: Sequence[QaExample]
    memories: list[Memory]
    """Q * G memories with their drafts and pages, ordered by (q, g)."""
    readings: list[Reading]
    """Every answer, of every readable page, by every objective."""
    scores: Scores
    read_advantage: np.ndarray
    """f64[Q, G, A]: w_k A_k, what read turns are trained with."""
    draft_advantage: np.ndarray
    """f64[Q, G]: the weighted mixture, what draft turns are trained with."""


def rollout(
    agent: Agent,
    state: TrainState,
    examples: Sequence[QaExample],
    rl: RLConfig,
    sampling: SamplingConfig,
    step: int,
) -> Rollout:
    """Sample a group of memories for each question, read each page three ways, and score the answers."""
    # Draft, in the text domain: G memories a question, one independent conversation per chunk.
    memories = agent.draft_memories(state.params, examples, rl.group_size, sampling, step)

    # Render: only the final memory is drawn. A page that fails is a status, and its sample has weight zero.
    memories = agent.render_memories(memories)

    # Read, in the vision domain: std and augQ at the full budget, augM on the page shrunk 4x per side.
    requests = agent.training_requests(examples, memories, step)
    readings = agent.read_pages(state.params, examples, requests, sampling, step)

    # Score: correctness of the boxed answer, nothing else. Dense [Q, G, A] with a mask of what was scored.
    scores = score_readings(examples, rl.group_size, readings)

    # Advantages, objective by objective within the group; the drafts earn the weighted mixture.
    weights = (rl.weight_std, rl.weight_aug_m, rl.weight_aug_q)
    advantage = group_advantages(scores.rewards, scores.scored, rl.normalize_by_std)
    return Rollout(
        examples,
        memories,
        readings,
        scores,
        read_advantage=read_advantages(advantage, weights),
        draft_advantage=draft_advantages(advantage, weights),
    )


def weighted_turns(result: Rollout) -> list[WeightedTurn]:
    """Every turn that is trained, with its advantage; what was not scored is left out (weight zero)."""
    turns = []
    for memory in result.memories:
        if result.scores.scored[memory.q, memory.g].any():
            advantage = result.draft_advantage[memory.q, memory.g]
            turns += [WeightedTurn(turn, advantage) for turn in memory.drafts]
    for reading in result.readings:
        index = reading.turn.q, reading.turn.g, READ_KINDS.index(reading.turn.kind)
        if result.scores.scored[index]:
            turns.append(WeightedTurn(reading.turn, result.read_advantage[index]))
    return turns


def train_step(
    agent: Agent,
    learner: Learner,
    state: TrainState,
    examples: Sequence[QaExample],
    rl: RLConfig,
    sampling: SamplingConfig,
    step: int,
) -> tuple[TrainState, Rollout, dict[str, float]]:
    """One complete GRPO step; returns the new state, what was sampled, and the update's metrics."""
    result = rollout(agent, state, examples, rl, sampling, step)

    # Pack: turns that share a prefix become one row [prefix | siblings], by mini-batch of questions.
    turns = weighted_turns(result)
    minibatches = [
        pack_turns([t for t in turns if t.turn.q in questions], learner.packing)
        for questions in batches(len(examples), rl.minibatch_questions)
    ]

    # Update: PPO clip with the KL to the initial policy, one optimiser update for each mini-batch.
    state, metrics = learner.update(state, minibatches)
    return state, result, metrics
