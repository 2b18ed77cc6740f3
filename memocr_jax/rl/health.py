"""When a run must not start, and when it must stop. All processes see the same numbers, and stop together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from memocr_jax.config import Config, to_tree
from memocr_jax.core.errors import UserError
from memocr_jax.core.processes import code_version, require_same
from memocr_jax.data.loader import Examples
from memocr_jax.rl.pack import MiniBatch, save_minibatch
from memocr_jax.rl.update import Update


def require_equal_shares(config: Config, processes: int) -> None:
    """Raise UserError unless mini-batches and micro-batches divide over the processes."""
    for name, value in {
        "rl.minibatch_questions": config.rl.minibatch_questions,
        "train.micro_batch_rows": config.train.micro_batch_rows,
    }.items():
        if value % processes:
            raise UserError(
                f"{name} is {value}, which does not divide over {processes} processes; the nearest that does "
                f"is {max(1, round(value / processes)) * processes}"
            )


def require_alike(config: Config, examples: Examples) -> None:
    """Raise UserError unless all processes run the same code with the same settings on the same questions."""
    if jax.process_count() == 1:
        return
    settings = to_tree(config)
    del settings["processes"]["index"]
    # Some of the questions are enough to tell two data sets apart.
    some = range(0, len(examples), -(-len(examples) // 16))
    data = [len(examples), *((examples[i].example_id, examples[i].document_tokens) for i in some)]
    require_same(code=code_version(), configuration=settings, data=data)


def failure(
    config: Config,
    run_dir: Path,
    metrics: Mapping[str, Any],
    updated: Update,
    minibatches: Sequence[MiniBatch],
) -> str | None:
    """Why the run must stop after this step, or None. Saves the batch whose gradient was not finite."""
    health, skipped = config.health, updated.state.skipped_in_row
    if health.max_skipped_updates and skipped >= health.max_skipped_updates:
        path = run_dir / "failed" / f"step_{updated.state.step:06d}_process_{jax.process_index()}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_minibatch(path, minibatches[updated.skipped[-1]])
        return (
            f"health.max_skipped_updates: {skipped} updates in a row had a loss or a "
            f"gradient that is not finite; the last batch is in {path}; the checkpoint has "
            "the weights before these updates; lower optimizer.learning_rate or use model.dtype float32"
        )
    memories = config.rl.questions_per_step * config.rl.group_size
    if metrics["render/failed"] > health.max_failed_pages * memories:
        return (
            f"health.max_failed_pages: {metrics['render/failed']:.0f} of {memories} pages could not be drawn "
            f"(allowed: {health.max_failed_pages:.0%}); see the pages' status in {run_dir / 'trajectories'}"
        )
    return None
