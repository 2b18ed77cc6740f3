"""The stages of a warm-up: which update belongs to which."""

from __future__ import annotations

from memocr_jax.config import Config, WarmupStage
from memocr_jax.core.errors import UserError


class Stages:
    """Which stage each update belongs to. Raises UserError for stages that teach nothing."""

    def __init__(self, config: Config):
        warmup = config.warmup
        if bool(warmup.data) == bool(warmup.stages):
            raise UserError(
                "warmup: give either data (JSON lines of conversations) or stages (lessons of the synthetic "
                f"world); data is {warmup.data!r} and there are {len(warmup.stages)} stages"
            )
        if warmup.stages and config.data.source != "synthetic":
            raise UserError(
                f"warmup.stages needs data.source synthetic; it is {config.data.source!r}: use warmup.data"
            )
        for i, stage in enumerate(warmup.stages):
            most = stage.facts_max or config.data.synthetic.facts
            if stage.updates < 1 or not stage.rows:
                raise UserError(
                    f"warmup.stages[{i}]: updates is {stage.updates}, rows {stage.rows}; give both"
                )
            if not 1 <= stage.facts_min <= most:
                raise UserError(
                    f"warmup.stages[{i}].facts_min is {stage.facts_min}; use 1 to facts_max, which is {most}"
                )
        self.stages = warmup.stages
        self.updates = sum(s.updates for s in warmup.stages) if warmup.stages else warmup.updates

    def stage(self, update: int) -> WarmupStage:
        """The stage of an update, counted from 1."""
        for stage in self.stages:
            if update <= stage.updates:
                return stage
            update -= stage.updates
        raise IndexError(update)
