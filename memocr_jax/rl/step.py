"""One training step of MemOCR (arXiv 2601.21468), top to bottom.

A question comes with a document far longer than the model's context. The model reads it chunk by chunk and
keeps a Markdown memory; the memory is drawn as a page; the model answers by looking at the page:

    draft -> render -> read (three ways) -> score -> advantages -> pack -> update

`train.py` calls `rollout` and then `update`, once a step. Left out of this file on purpose: progress, logging
and checkpoints (`train.py`), how tokens are sampled (`engine/`), the loss (`loss.grpo_loss`) and its gradient
(`update.py`), and how several processes share the work: each calls `rollout` with its own questions, and only
`update` needs them all (`pack.agree`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from flax import nnx

from memocr_jax.agent.agent import Agent, Memory, Reading
from memocr_jax.config import RLConfig, SamplingConfig
from memocr_jax.core.buckets import batches
from memocr_jax.core.types import READ_KINDS, QaExample
from memocr_jax.rl.advantages import draft_advantages, group_advantages, read_advantages
from memocr_jax.rl.pack import MiniBatch, WeightedTurn, agree, pack_turns
from memocr_jax.rl.rewards import Scores, score_readings
from memocr_jax.rl.update import Learner, TrainState, Update
from render.types import Mode


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Everything that was sampled for a step's questions, with its rewards and advantages."""

    examples: Sequence[QaExample]
    memories: list[Memory]
    """Q * G memories with their drafts and pages, ordered by (q, g)."""
    readings: list[Reading]
    """Every answer, of every readable page, by every objective."""
    scores: Scores
    read_advantage: np.ndarray
    """f64[Q, G, A]: w_k A_k, the advantage that read turns are trained with."""
    draft_advantage: np.ndarray
    """f64[Q, G]: the weighted mixture, the advantage that draft turns are trained with."""
    train_reads: bool = True
    """Whether read turns are trained too (`rl.train_reads`)."""
    leave_out_flat: bool = False
    """Whether groups without a signal are left out (`rl.leave_out_flat_groups`)."""
    memory_format: Mode = "markdown"


def rollout(
    agent: Agent,
    policy: nnx.State,
    examples: Sequence[QaExample],
    rl: RLConfig,
    sampling: SamplingConfig,
    step: int,
) -> Rollout:
    """Sample a group of memories for each question, read each page three ways, and score the answers.

    `policy` are the weights to sample with, on the engine's devices.
    """
    # In waves of questions: one wave's pages are drawn while the next is drafted or an earlier one is read.
    waves = []
    for first, wave in _waves(examples, rl.waves):
        # Draft, in the text domain: G memories a question, one independent conversation per chunk.
        drafted = agent.draft_memories(policy, wave, rl.group_size, sampling, step, first=first)
        # Render: only the final memory is drawn. A page that fails is a status; its sample has weight zero.
        waves.append(agent.submit_pages(drafted))

    memories, readings = [], []
    for pages in waves:
        drawn = pages.result()
        # Read, in the vision domain: std and augQ at the full budget, augM on the page shrunk 4x per side.
        requests = agent.training_requests(examples, drawn, step)
        readings += agent.read_pages(policy, examples, requests, sampling, step)
        memories += drawn

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
        train_reads=rl.train_reads,
        leave_out_flat=rl.leave_out_flat_groups,
        memory_format=agent.config.memory_format,
    )


def weighted_turns(result: Rollout) -> list[WeightedTurn]:
    """Every turn that is trained, with its advantage; what was not scored is left out (weight zero)."""
    turns = []
    # bool[Q] and bool[Q, A]: the groups in which some sample has an advantage, or all groups.
    drafts_differ = (result.draft_advantage != 0).any(axis=1) | (not result.leave_out_flat)
    reads_differ = (result.read_advantage != 0).any(axis=1) | (not result.leave_out_flat)
    for memory in result.memories:
        if result.scores.scored[memory.q, memory.g].any() and drafts_differ[memory.q]:
            advantage = result.draft_advantage[memory.q, memory.g]
            turns += [WeightedTurn(turn, advantage) for turn in memory.drafts]
    for reading in result.readings if result.train_reads else ():
        index = reading.turn.q, reading.turn.g, READ_KINDS.index(reading.turn.kind)
        if result.scores.scored[index] and reads_differ[index[0], index[2]]:
            turns.append(WeightedTurn(reading.turn, result.read_advantage[index]))
    return turns


def update(
    learner: Learner, state: TrainState, result: Rollout, minibatch_questions: int
) -> tuple[Update, list[MiniBatch]]:
    """One GRPO update from what was sampled, and the mini-batches that it was made from."""
    # Pack: turns that share a prefix become one row [prefix | siblings], by mini-batch of questions.
    turns = weighted_turns(result)
    minibatches = [
        pack_turns([t for t in turns if t.turn.q in questions], learner.packing)
        for questions in batches(len(result.examples), minibatch_questions)
    ]
    minibatches = agree(minibatches, learner.packing, learner.mesh)

    # Update: PPO clip with the KL to the initial policy (`loss.grpo_loss`), one update for each mini-batch.
    return learner.update(state, minibatches), minibatches


def _waves(examples: Sequence[QaExample], count: int) -> list[tuple[int, Sequence[QaExample]]]:
    """The questions in `count` consecutive parts of like size, each with the number of its first."""
    size = -(-len(examples) // count)
    return [(part.start, examples[part.start : part.stop]) for part in batches(len(examples), size)]
