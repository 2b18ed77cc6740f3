"""Checkpoints: what is saved comes back, on any mesh, and a wrong one is refused in one line."""

import dataclasses

import jax
import numpy as np
import pytest

from memocr_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, RunConfig, save_config
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import abstract_like, make_mesh
from memocr_jax.rl.optimizer import abstract_optimizer, init_optimizer, make_optimizer
from memocr_jax.runs.checkpoint import (
    Checkpoints,
    Meta,
    open_checkpoint,
    require_same_base,
    require_same_model,
)


def save(directory, small_model, mesh, steps=(1, 2), scores=(), keep_best=0):
    _, params = small_model.on(mesh)
    optimizer = make_optimizer(OptimizerConfig())
    opt_state = init_optimizer(optimizer, params, mesh)
    save_config(Config(), directory / "config.yaml")
    with Checkpoints(directory, keep=2, keep_best=keep_best) as checkpoints:
        for step in steps:
            meta = Meta(step, 3 * step, small_model.config.to_dict(), theme_css="h1 { color: red }")
            items = {"params": params, "opt_state": opt_state}
            checkpoints.save(meta, items, dict(scores).get(step))
    return params, optimizer, opt_state


def test_comes_back_bit_for_bit_on_another_mesh(tmp_path, small_model, tiny_mesh):
    four = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    params, optimizer, opt_state = save(tmp_path, small_model, four)
    _, target = small_model.on(tiny_mesh)
    with open_checkpoint(tmp_path) as (checkpoints, step):
        assert step == 2
        meta = checkpoints.meta(step)
        restored = checkpoints.restore(
            step, params=abstract_like(target), opt_state=abstract_optimizer(optimizer, target, tiny_mesh)
        )
    assert (meta.step, meta.updates, meta.theme_css) == (2, 6, "h1 { color: red }")
    assert checkpoints.has(2, "params") and not checkpoints.has(2, "next_policy")
    require_same_model(meta, small_model.config, tmp_path)
    for name, tree in (("params", params), ("opt_state", opt_state)):
        assert jax.tree.structure(restored[name]) == jax.tree.structure(tree)
        for ours, theirs in zip(jax.tree.leaves(restored[name]), jax.tree.leaves(tree), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
            assert len(ours.sharding.device_set) == 1


def test_moments_are_laid_out_as_their_parameters(small_model):
    four = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    _, params = small_model.on(four)
    opt_state = init_optimizer(make_optimizer(OptimizerConfig()), params, four)
    layouts = {x.sharding.spec for x in jax.tree.leaves(params)}
    assert len(layouts) > 2  # otherwise nothing is sharded and the test is empty
    moments = [x for x in jax.tree.leaves(opt_state) if x.ndim]
    expected = [x.sharding for x in jax.tree.leaves(params)]
    assert [x.sharding for x in moments] == 2 * expected  # AdamW keeps two


def test_old_checkpoints_go_and_unfinished_ones_are_not_listed(tmp_path, small_model, tiny_mesh):
    save(tmp_path, small_model, tiny_mesh, steps=(1, 2, 3))
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert checkpoints.latest() == 3


def test_the_best_checkpoint_stays_with_the_newest(tmp_path, small_model, tiny_mesh):
    scores = {1: 0.2, 2: 0.9, 4: 0.5}  # steps 3, 5 and 6 had no validation
    save(tmp_path, small_model, tiny_mesh, steps=range(1, 7), scores=scores, keep_best=1)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]


def test_mistakes_are_one_clear_line(tmp_path, small_model, tiny_mesh):
    def error(run_dir, step=None):
        with pytest.raises(UserError) as raised, open_checkpoint(run_dir, step):
            pass
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "not the directory of a run" in error(tmp_path / "nowhere")
    save_config(Config(), tmp_path / "config.yaml")
    assert "no checkpoints" in error(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "no complete checkpoint" in error(tmp_path)
    save(tmp_path, small_model, tiny_mesh)
    assert "no checkpoint of step 7; there are [1, 2]" in error(tmp_path, 7)

    wider = dataclasses.replace(small_model.config.text, intermediate_size=999)
    with open_checkpoint(tmp_path) as (checkpoints, step), pytest.raises(UserError) as raised:
        require_same_model(
            checkpoints.meta(step), dataclasses.replace(small_model.config, text=wider), "runs/x"
        )
    assert "runs/x" in str(raised.value) and "intermediate_size is 112 there and 999" in str(raised.value)


def test_adapters_go_on_with_their_own_base_only():
    config = Config(model=ModelConfig(path="models/theirs"), run=RunConfig(dir="runs/a"))
    meta = Meta(1, 1, {}, base="12ab")
    require_same_base(meta, "12ab", config)
    require_same_base(dataclasses.replace(meta, base=""), "34cd", config)  # saved without adapters
    with pytest.raises(UserError, match=r"runs/a: its adapters .* model\.path models/theirs .*base_dtype"):
        require_same_base(meta, "34cd", config)
