"""What a run goes on from: the state in a checkpoint, or a directory made from given weights."""

from __future__ import annotations

from pathlib import Path

import jax
from flax import nnx

from memocr_jax.config import CheckpointConfig, Config, save_config
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.rl.optimizer import init_optimizer, make_optimizer
from memocr_jax.rl.trainable import Trainable
from memocr_jax.runs.checkpoint import Checkpoints, Meta
from render.theme import theme_css


def save_run(run_dir: str | Path, config: Config, model: Qwen25VLConfig, params: nnx.State) -> None:
    """Make a run directory that starts from `params` (step 0), as `convert import` does.

    Training continues from it; the optimiser starts fresh, for the file holds none.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    graphdef, _ = abstract_model(model)
    trainable = Trainable(graphdef, params, config.train.trainable, config.lora, mesh, config.run.seed)
    trained = trainable.fresh(params)
    opt_state = init_optimizer(make_optimizer(config.optimizer), trained, mesh)
    with Checkpoints(run_dir, keep=CheckpointConfig().keep) as checkpoints:
        meta = Meta(0, 0, model.to_dict(), theme_css=theme_css(config.render), base=trainable.base)
        checkpoints.save(meta, {**trainable.saved(trained), "opt_state": opt_state})
