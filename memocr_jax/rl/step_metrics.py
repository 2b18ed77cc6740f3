"""Metrics of a step's rollout, each mean with its own denominator, and the step's times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from memocr_jax.agent.regions import in_heading
from memocr_jax.core.metrics import Metrics
from memocr_jax.core.processes import gather
from memocr_jax.core.types import READ_KINDS, Stop, TurnKind
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import decoder_flops, head_flops, peak_flops, row_pairs, vision_flops
from memocr_jax.rl.pack import MiniBatch
from memocr_jax.rl.step import Rollout
from render.types import PageStatus
from render.views import image_tokens


def exchange(result: Rollout, stop: int | None) -> tuple[dict[str, float | None], int | None]:
    """The rollout's metrics over all processes, and the signal that any of them received."""
    everyone = gather({"metrics": rollout_metrics(result).parts(), "stop": stop})
    metrics = Metrics.merged(theirs["metrics"] for theirs in everyone).as_dict()
    received = [theirs["stop"] for theirs in everyone if theirs["stop"] is not None]
    return metrics, received[0] if received else None


def timing(
    metrics: Mapping[str, float | None], step_s: float, stages: Mapping[str, float], flops: float
) -> dict[str, float | None]:
    """Metrics that depend on the clock: seconds by stage (of process 0), tokens per second and MFU.

    `flops` are those of this process's part of the update (`update_flops`).
    """
    stages = {"render_exposed": 0.0, **stages}
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        **{f"time/{name}_s": value for name, value in sorted(stages.items()) if name != "render_exposed"},
        "time/step_s": step_s,
        "time/tokens_per_s": metrics["rollout/sampled_tokens"] / step_s,
        "render/exposed_s": stages["render_exposed"],
        "update/mfu": flops / (peak * jax.local_device_count() * stages["update"]) if peak else None,
    }


def update_flops(minibatches: Sequence[MiniBatch], model: Qwen25VLConfig, trainable: str) -> float:
    """Operations that the update needs for its gradient (`models/flops.py`), this process's rows only.

    A backward pass costs two forward passes: one for the weights' gradients, one for the activations'. What
    is frozen (train.trainable) lacks the first; the vision tower then lacks both.
    """
    decoder = {"all": 3, "decoder": 3, "lora": 2}[trainable]
    vision = 3 if trainable == "all" else 1
    total = 0.0
    for batch in (batch for minibatch in minibatches for batch in minibatch.batches):
        segments = batch.segments
        for row in segments:
            lengths = np.bincount(row[row >= 0], minlength=1)
            pairs = row_pairs(int(lengths[0]), [int(n) for n in lengths[1:]])
            total += decoder * decoder_flops(model, int(lengths.sum()), pairs)
        total += decoder * head_flops(model, int(batch.loss_mask.sum()))
        if batch.vision is not None:
            patches = batch.vision.valid.reshape(len(segments), -1).sum(axis=1)
            total += vision * sum(vision_flops(model, int(n)) for n in patches if n)
    return total


OBJECTIVES = ("std", "aug_m", "aug_q")
"""Names of the objectives in metrics, in the order of `READ_KINDS`."""


def rollout_metrics(result: Rollout) -> Metrics:
    """Metrics of rewards, lengths, pages and failures. Mean rewards are over what was scored."""
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
        gold = in_heading(memory.text, result.examples[memory.q].evidence, result.memory_format)
        metrics.mean("memory/gold_in_heading", [] if gold is None else gold)
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
    turns = [turn for memory in result.memories for turn in memory.drafts]
    turns += [reading.turn for reading in result.readings]
    metrics.count("rollout/sampled_tokens", sum(len(turn.completion.tokens) for turn in turns))
    return metrics
