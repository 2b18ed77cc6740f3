"""AdamW and Muon: which parameters, which rate, and a state that can be laid out and restored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from memocr_jax.config import OptimizerConfig
from memocr_jax.core.sharding import param_shardings
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.rl.optimizer import abstract_optimizer, init_optimizer, make_optimizer, muon_dimensions


@pytest.fixture(scope="module")
def params(small_model, tiny_mesh):
    _, abstract = abstract_model(small_model.config, dtype=jnp.float32, mesh=tiny_mesh)
    shardings = param_shardings(abstract, tiny_mesh)
    return jax.tree.map(lambda x, s: jax.device_put(jnp.ones(x.shape), s), abstract, shardings)


def test_muon_takes_matrices_of_each_layer_and_leaves_tables_norms_and_biases(params):
    leaves = jax.tree_util.tree_leaves_with_path(
        muon_dimensions(params), is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers)
    )
    found = {
        ".".join(str(getattr(k, "key", k)) for k in path if getattr(k, "name", "") != "value"): dimensions
        for path, dimensions in leaves
    }
    assert found["language_model.layers.self_attn.q_proj.weight"] == ((2,), (1,))
    assert found["visual.merger.fc1.weight"] == ((1,), (0,))
    assert found["visual.patch_embed.weight"] == ((1, 2, 3, 4), (0,))
    for name in (
        "embed_tokens",
        "layers.self_attn.q_proj.bias",
        "layers.input_layernorm.weight",
        "norm.weight",
    ):
        assert found[f"language_model.{name}"] is None
    assert found["lm_head"] is None


def muon_update(ratio):
    params = {"layers": {"weight": jnp.zeros((2, 6, 4))}, "norm": jnp.ones(4)}
    optimizer = make_optimizer(
        OptimizerConfig(
            name="muon",
            learning_rate=1.0,
            warmup_steps=0,
            weight_decay=0.0,
            clip_norm=1e9,
            muon_adam_ratio=ratio,
        )
    )
    scale = jnp.array([1.0, 1e-3])[:, None, None]
    gradient = jax.random.normal(jax.random.key(0), (2, 6, 4)) * scale
    grads = {"layers": {"weight": gradient}, "norm": jnp.ones(4)}
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_a_muon_update_is_orthogonal_and_each_layer_by_itself():
    updates, others = muon_update(0.3), muon_update(0.6)
    for layer in np.asarray(updates["layers"]["weight"]):
        singular = np.linalg.svd(layer, compute_uv=False) / np.sqrt(6 / 4)
        # Newton-Schulz leaves singular values near 1 (arXiv 2502.16982), whatever the gradient's size was.
        assert singular.min() > 0.6 and singular.max() < 1.3
    np.testing.assert_array_equal(updates["layers"]["weight"], others["layers"]["weight"])
    np.testing.assert_allclose(2 * updates["norm"], others["norm"], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_abstract_state_is_that_of_a_fresh_one(params, tiny_mesh, name):
    optimizer = make_optimizer(OptimizerConfig(name=name))
    abstract, fresh = (f(optimizer, params, tiny_mesh) for f in (abstract_optimizer, init_optimizer))
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding == b.sharding, abstract, fresh
    )
    assert all(jax.tree.leaves(same))
    assert jax.tree.structure(abstract) == jax.tree.structure(fresh)


def test_the_rate_rises_stays_and_falls():
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}

    def rates(**settings):
        settings = {"learning_rate": 1.0, "weight_decay": 0.0, "eps": 0.0, **settings}
        optimizer = make_optimizer(OptimizerConfig(**settings))
        state, found = optimizer.init(params), []
        for _ in range(6):
            updates, state = optimizer.update(grads, state, params)
            found.append(-float(updates["w"][0]))
        return found

    np.testing.assert_allclose(rates(warmup_steps=0), [1] * 6, rtol=1e-3)
    np.testing.assert_allclose(rates(warmup_steps=2), [0.5, 1, 1, 1, 1, 1], rtol=1e-3)
    np.testing.assert_allclose(rates(warmup_steps=2, decay_steps=4), [0.5, 1, 1, 0.75, 0.5, 0.25], rtol=1e-3)
    assert isinstance(make_optimizer(OptimizerConfig()), optax.GradientTransformation)
