"""Where training from nothing starts: blocks that do nothing yet, and heads that look back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memocr_jax.core.sharding import param_shardings
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.layers import unstack
from memocr_jax.models.qwen25_vl import abstract_model, init_params
from memocr_jax.models.rope import mrope_angles, sin_cos
from memocr_jax.sft.prior import look_back, silence_blocks

NANO = Qwen25VLConfig.from_file("memocr_jax/assets/nano")


@pytest.fixture(scope="module")
def nano(tiny_mesh):
    options = {"dtype": jnp.float32, "mesh": tiny_mesh}
    graphdef, abstract = abstract_model(NANO, **options)
    return graphdef, init_params(NANO, 0, param_shardings(abstract, tiny_mesh), **options)


def test_silent_blocks_pass_their_input_on(nano):
    graphdef, params = nano
    model = nnx.merge(graphdef, silence_blocks(params))
    length = 7
    x = jax.random.normal(jax.random.key(0), (1, length, NANO.text.hidden_size))
    positions = jnp.broadcast_to(jnp.arange(length), (3, 1, length))
    hidden = model.hidden(x, positions, jnp.zeros((1, length), jnp.int32))
    np.testing.assert_allclose(hidden, model.language_model.norm(x), atol=1e-6)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, silence_blocks(params))
    # o_proj and down_proj of the decoder, proj and down_proj (with its bias at 0 already) of the tower.
    assert sum(jax.tree.leaves(changed)) == 4


@pytest.mark.parametrize(("head", "distance"), [(0, 1), (1, 2)])
def test_heads_look_one_and_two_tokens_back_whatever_is_there(nano, head, distance):
    graphdef, params = nano
    model = nnx.merge(graphdef, look_back(params, NANO))
    layer = unstack(model.language_model.layers)[0]
    length = 200
    x = jax.random.normal(jax.random.key(1), (length, NANO.text.hidden_size))
    sincos = sin_cos(mrope_angles(jnp.broadcast_to(jnp.arange(length), (3, length)), NANO.text))
    q, k, _ = layer.self_attn.qkv(layer.input_layernorm(x), sincos)
    scores = np.asarray(q[:, head] @ k[:, 0].T) / np.sqrt(NANO.text.head_dim)
    scores[np.triu_indices(length, 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    back = np.diagonal(weights, -distance)
    assert back.min() > 0.9, "the head attends elsewhere"


def test_the_other_heads_and_layers_stay_as_they_were(nano):
    _, params = nano
    before, after = (dict(nnx.to_flat_state(p)) for p in (params, look_back(params, NANO)))
    size = NANO.text.head_dim
    for path, old in before.items():
        old, new = np.asarray(old.get_value()), np.asarray(after[path].get_value())
        rows = {"q_proj": 2 * size, "k_proj": size}.get(path[-2] if len(path) > 1 else "", 0)
        if "layers" in path and rows:
            assert (new[0, :rows] != old[0, :rows]).any()
            np.testing.assert_array_equal(new[0, rows:], old[0, rows:])
            np.testing.assert_array_equal(new[1:], old[1:])
        else:
            np.testing.assert_array_equal(new, old)
