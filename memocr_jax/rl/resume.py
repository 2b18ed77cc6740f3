"""The start of a run: the state in a checkpoint, or a directory made from given weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from memocr_jax.config import CheckpointConfig, Config, save_config
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import abstract_like
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.rl.optimizer import init_optimizer, make_optimizer
from memocr_jax.rl.trainable import Trainable, training_graph
from memocr_jax.rl.update import Learner, TrainState
from memocr_jax.runs.checkpoint import Checkpoints, Meta, require_same_base, require_same_model, theme_of
from render.settings import RenderSettings
from render.theme import remembered, theme_css, with_theme_text


def remembered_theme(config: Config, meta: Meta | None, say: Callable[[str], None]) -> RenderSettings:
    """The settings of the renderer with the theme's text: a run keeps the theme that it began with."""
    if meta is None or not meta.theme_css:
        return with_theme_text(config.render)
    begun = theme_of(meta, config.render)
    if theme_css(begun) != theme_css(config.render):
        say(f"render.theme {config.render.theme}: the run keeps the theme that it began with")
    return begun


def meta_of(
    state: TrainState, model: Qwen25VLConfig, base: str, place: dict[str, Any], render: RenderSettings
) -> Meta:
    """The description in a checkpoint of `state`; `place` is that in the stream of examples."""
    return Meta(
        state.step,
        state.updates,
        model.to_dict(),
        theme_css=render.theme_css,
        order=place,
        skipped_in_row=state.skipped_in_row,
        base=base,
    )


def require_same_run(config: Config, meta: Meta, model: Qwen25VLConfig, base: str) -> None:
    """Raise UserError when a checkpoint is of another model, or its adapters of another `Learner.base`."""
    require_same_model(meta, model, config.run.dir)
    require_same_base(meta, base, config)


def restored(
    config: Config, learner: Learner, checkpoints: Checkpoints, meta: Meta, initial: nnx.State
) -> tuple[TrainState, nnx.State | None]:
    """The state of the checkpoint of `meta`, and (rl.staleness 1) the weights that its next step is sampled
    from, laid out as `initial`.

    Raises UserError when the checkpoint lacks them.
    """
    items = learner.abstract_items()
    stale = config.rl.staleness and meta.step
    if stale and not checkpoints.has(meta.step, "next_policy"):
        raise UserError(
            f"{config.run.dir}: its checkpoint was made with rl.staleness 0 and lacks the weights to sample "
            "from; set it back, or use another --run.dir or --run.fresh"
        )
    if stale:
        items["next_policy"] = abstract_like(initial)
    found = checkpoints.restore(meta.step, **items)
    next_policy = found.pop("next_policy", None)
    return learner.restored(found, meta.step, meta.updates, meta.skipped_in_row), next_policy


def save_run(run_dir: str | Path, config: Config, model: Qwen25VLConfig, params: nnx.State) -> None:
    """Make a run directory that starts from `params` (step 0), as `convert import` does.

    Training continues from it; the optimiser starts fresh, for the file holds none.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    graphdef = training_graph(config, model, mesh)
    trainable = Trainable(graphdef, params, config.train.trainable, config.lora, mesh, config.run.seed)
    trained = trainable.fresh(params)
    opt_state = init_optimizer(make_optimizer(config.optimizer), trained, mesh)
    with Checkpoints(run_dir, keep=CheckpointConfig().keep) as checkpoints:
        meta = Meta(0, 0, model.to_dict(), theme_css=remembered(config.render), base=trainable.base)
        checkpoints.save(meta, {**trainable.saved(trained), "opt_state": opt_state})
