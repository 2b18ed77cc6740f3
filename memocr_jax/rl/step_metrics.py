"""What a step's rollout looked like, as metrics with honest denominators."""

from __future__ import annotations

import numpy as np

from memocr_jax.metrics import Metrics
from memocr_jax.rl.step import Rollout
from memocr_jax.types import READ_KINDS, Stop, TurnKind
from render.types import PageStatus
from render.views import image_tokens

OBJECTIVES = ("std", "aug_m", "aug_q")
"""Names of the objectives in metrics, in the order of `READ_KINDS`."""


def rollout_metrics(result: Rollout) -> dict[str, float | None]:
    """Rewards, lengths, pages and what went wrong. Means are over what was scored; counts are of samples."""
    metrics = Metrics()
    rewards, scored = result.scores.rewards, result.scores.scored
    for k, name in enumerate(OBJECTIVES):
        metrics.add_sum(f"reward/{name}", rewards[..., k][scored[..., k]].sum(), scored[..., k].sum())
        metrics.count(f"scored/{name}", int(scored[..., k].sum()))
        # A group whose scored samples all earned the same teaches nothing.
        groups = [rewards[q, scored[q, :, k], k] for q in range(len(rewards))]
        metrics.mean(f"group/zero_variance_{name}", [float(np.ptp(g) == 0) for g in groups if len(g)])
    for memory in result.memories:
        status = memory.page.status
        metrics.count("render/empty", status == PageStatus.EMPTY)
        metrics.count("render/truncated", status == PageStatus.TRUNCATED)
        metrics.count("render/failed", not memory.readable and status != PageStatus.EMPTY)
        if memory.readable:
            metrics.mean("page/height_px", memory.page.pixels.shape[0])
        for turn in memory.drafts:
            metrics.mean("draft/tokens", len(turn.completion.tokens))
            metrics.mean("draft/truncated", turn.completion.stop == Stop.LENGTH)
    for reading in result.readings:
        name = OBJECTIVES[READ_KINDS.index(reading.turn.kind)]
        metrics.mean(f"read/tokens_{name}", len(reading.turn.completion.tokens))
        metrics.mean(f"read/truncated_{name}", reading.turn.completion.stop == Stop.LENGTH)
        metrics.mean(f"view/tokens_{name}", image_tokens(reading.turn.image))
    readable = sum(memory.readable for memory in result.memories)
    clozes = sum(reading.turn.kind == TurnKind.GAP_FILL for reading in result.readings)
    metrics.count("gap_fill/missing", readable - clozes)
    metrics.count("question/without_answer", sum(not example.answers for example in result.examples))
    metrics.mean("document/tokens", [example.document_tokens for example in result.examples])
    metrics.mean("document/chunks", [len(example.chunks) for example in result.examples])
    return metrics.as_dict()
