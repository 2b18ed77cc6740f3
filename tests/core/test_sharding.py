"""The table of logical axes, meshes, and the model on eight simulated devices."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from memocr_jax.config import MeshConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import (
    LocalCopy,
    by_process,
    local_mesh,
    make_mesh,
    own_rows,
    partition_spec,
    split_devices,
)


def test_logical_axes_become_mesh_axes():
    assert partition_spec(("layers", "mlp", "embed")) == PartitionSpec(None, "tensor", "fsdp")


def test_two_axes_on_one_mesh_axis_collide():
    with pytest.raises(ValueError, match="collide"):
        partition_spec(("mlp", "vocab"))


def test_an_axis_without_a_rule():
    with pytest.raises(ValueError, match="'banana'"):
        partition_spec(("banana",))


def test_a_mesh_that_is_not_the_devices():
    with pytest.raises(UserError, match="2 x 3 x 1 = 6, but there are 1 devices"):
        make_mesh(MeshConfig(data=2, fsdp=3), jax.devices()[:1])


def test_a_process_has_its_rows_and_its_tensor_group_to_itself():
    # Hosts of 2 x 2 chips in a slice of 4 x 4, numbered over the torus as a TPU numbers them.
    torus = [
        mock.Mock(spec=jax.Device, id=4 * y + x, process_index=2 * (y // 2) + x // 2)
        for y in range(4)
        for x in range(4)
    ]
    owners = np.array([device.process_index for device in by_process(torus)])
    for tensor in (1, 2, 4):
        rows = owners.reshape(-1, tensor)
        assert (rows == rows[:, :1]).all()
        assert (np.diff(rows[:, 0]) >= 0).all()
    assert [device.id for device in by_process(torus)[:4]] == [0, 1, 4, 5]


def test_devices_are_shared_or_split_between_sampling_and_training():
    devices = jax.devices()
    assert split_devices(0) == (devices, devices)
    assert split_devices(1) == (devices[:1], devices[1:])
    with pytest.raises(UserError, match=r"engine.devices is 4, but a process has 4 devices.*at most 3"):
        split_devices(4)
    with pytest.raises(UserError, match=r"engine.tensor is 3, which does not divide the 4 devices"):
        local_mesh(devices, 3)


def test_a_local_copy_is_whole_but_for_the_tensor_axis(small_model):
    four = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    assert own_rows(four) == (0, 2)
    _, params = small_model.on(four)
    for tensor in (1, 2):
        mesh = local_mesh(jax.devices(), tensor)
        copy = LocalCopy(params, four, mesh, jnp.bfloat16)(params)
        up = copy["language_model"]["layers"]["mlp"]["up_proj"]["weight"].get_value()
        assert up.dtype == jnp.bfloat16 and up.sharding.num_devices == 4
        assert up.sharding.shard_shape(up.shape)[1] == up.shape[1] // tensor
        norm = copy["language_model"]["norm"]["weight"].get_value()
        assert norm.dtype == jnp.float32
        for ours, theirs in zip(jax.tree.leaves(copy), jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs).astype(ours.dtype))


def test_a_copy_that_is_there_already_is_not_made(small_model, tiny_mesh):
    _, params = small_model.on(tiny_mesh)
    copy = LocalCopy(params, tiny_mesh, local_mesh(tiny_mesh.local_devices, 1), jnp.float32)(params)
    for ours, theirs in zip(jax.tree.leaves(copy), jax.tree.leaves(params), strict=True):
        assert ours.unsafe_buffer_pointer() == theirs.unsafe_buffer_pointer()


ON_EIGHT_DEVICES = """
import dataclasses, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
from flax import nnx
from memocr_jax.config import MeshConfig
from memocr_jax.models.images import vision_batch
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from memocr_jax.models.hf_weights import load_params, save_params
from memocr_jax.models.qwen25_vl import abstract_model, init_params
from memocr_jax.core.sharding import batch_sharding, make_mesh, param_shardings

config = Qwen25VLConfig(
    text=TextConfig(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                    num_attention_heads=6, num_key_value_heads=2, mrope_section=(1, 1, 2)),
    vision=VisionConfig(depth=2, hidden_size=40, intermediate_size=36, num_heads=5, out_hidden_size=48,
                        fullatt_block_indexes=(1,)),
)
rng = np.random.default_rng(0)
vision, slots = vision_batch([rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)] * 4, config.vision)
tokens = rng.integers(0, 96, (4, 11))
image_slots = np.full((4, 11), -1)
image_slots[:, 2:8] = np.stack(slots)
positions = np.broadcast_to(np.arange(11), (3, 4, 11))
segments = np.zeros((4, 11), int)

def run(mesh):
    graphdef, abstract = abstract_model(config, dtype=jnp.float32, mesh=mesh)
    params = init_params(config, 5, param_shardings(abstract, mesh))
    batch = jax.device_put((tokens, image_slots, segments, vision), batch_sharding(mesh))

    @jax.jit
    def loss(params, tokens, image_slots, segments, vision):
        model = nnx.merge(graphdef, params)
        x = model.embed(tokens, image_slots, model.encode_images(vision))
        logits = model.head(model.hidden(x, positions, segments))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params, *batch)
    return params, float(value), grads

def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

one, one_loss, one_grads = run(make_mesh(MeshConfig(), jax.devices()[:1]))
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
many, many_loss, many_grads = run(mesh)
assert equal(one, many), "random parameters depend on the mesh"
assert abs(one_loss - many_loss) < 1e-5, (one_loss, many_loss)
for a, b in zip(jax.tree.leaves(one_grads), jax.tree.leaves(many_grads), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
assert "tensor" in str(many["language_model"]["layers"]["mlp"]["up_proj"]["weight"][...].sharding.spec)
with tempfile.TemporaryDirectory() as one_dir, tempfile.TemporaryDirectory() as many_dir:
    save_params(one, one_dir)
    save_params(many, many_dir)
    files = [open(f"{d}/model.safetensors", "rb").read() for d in (one_dir, many_dir)]
    assert files[0] == files[1], "the exported file depends on the mesh"
    back = load_params(many_dir, config, mesh)
    assert equal(back, many)
    assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(lambda x: x.sharding, many)
print("same")
"""


def test_the_model_does_not_depend_on_the_mesh():
    """Parameters, loss, gradients, exported bytes: 2 x 2 x 2 devices against one."""
    done = subprocess.run([sys.executable, "-c", ON_EIGHT_DEVICES], capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr[-3000:]
