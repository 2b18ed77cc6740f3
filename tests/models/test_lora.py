"""Adapters: what they compute, and that PEFT computes the same from the exported files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file

from memocr_jax import convert
from memocr_jax.config import Config, LoraConfig, MeshConfig, ModelConfig, TrainConfig, save_config
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import make_mesh
from memocr_jax.models import lora
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.rl.trainable import Trainable, fingerprint
from memocr_jax.runs.checkpoint import Checkpoints, Meta

LORA = LoraConfig(rank=3, alpha=7.0, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))


@pytest.fixture(scope="module")
def adapters(references, tiny_mesh):
    """(training split, adapters that change much) of the configuration "grouped"."""
    reference = references("grouped")
    params = load_params(reference.directory, reference.config, tiny_mesh)
    graphdef, _ = abstract_model(reference.config, dtype=jnp.float32)
    trainable = Trainable(graphdef, params, "lora", LORA, tiny_mesh, 0)
    fresh = trainable.fresh(params)
    rng = np.random.default_rng(0)
    return (
        trainable,
        fresh,
        jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), fresh),
    )


def hidden(graphdef, params):
    model = nnx.merge(graphdef, params)
    tokens = jnp.arange(8)[None] * 13
    positions = jnp.broadcast_to(jnp.arange(8), (3, 1, 8))
    return model.hidden(model.embed(tokens), positions, jnp.zeros((1, 8), jnp.int32))


def test_fresh_adapters_change_nothing_and_merged_ones_the_same(adapters):
    trainable, fresh, trained = adapters
    base = hidden(trainable.base_graphdef, trainable.frozen)
    with_fresh = hidden(trainable.graphdef, trainable.whole(fresh, trainable.frozen))
    np.testing.assert_array_equal(with_fresh, base)
    with_adapters = hidden(trainable.graphdef, trainable.whole(trained, trainable.frozen))
    merged = hidden(trainable.base_graphdef, trainable.policy(trained))
    assert float(jnp.abs(with_adapters - base).max()) > 0.5
    np.testing.assert_allclose(merged, with_adapters, atol=1e-5)


def test_four_devices_make_and_merge_the_same(small_model, tiny_mesh):
    merged = []
    for mesh in (tiny_mesh, make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())):
        graphdef, params = small_model.on(mesh)
        trainable = Trainable(graphdef, params, "lora", LORA, mesh, 3)
        trained = jax.tree.map(lambda x: x + 0.1, trainable.fresh(params))
        policy = trainable.policy(trained)
        for ours, theirs in zip(jax.tree.leaves(policy), jax.tree.leaves(params), strict=True):
            assert ours.sharding == theirs.sharding
        merged.append(policy)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(trained))
    for one, four in zip(*map(jax.tree.leaves, merged), strict=True):
        np.testing.assert_allclose(one, four, atol=1e-6)


def test_shapes_and_which_maps_get_one(adapters):
    _, fresh, _ = adapters
    shapes = {path: variable.get_value().shape for path, variable in nnx.to_flat_state(fresh)}
    assert {path[3] for path in shapes} == set(LORA.targets)
    # Three layers stacked; hidden 48, inner 80, 2 key-value heads of 8; nothing of the vision tower.
    layers = ("language_model", "layers")
    assert shapes[(*layers, "mlp", "down_proj", "lora", "A")] == (3, 3, 80)
    assert shapes[(*layers, "self_attn", "v_proj", "lora", "B")] == (3, 16, 3)
    assert all(path[:2] == layers for path in shapes)
    for path, variable in nnx.to_flat_state(fresh):
        value = np.asarray(variable.get_value())
        if path[-1] == "B":
            assert (value == 0).all()
        else:  # uniform within 1 / sqrt(inputs): its standard deviation is the bound over sqrt(3)
            bound = value.shape[-1] ** -0.5
            assert np.abs(value).max() <= bound and abs(value.std() / (bound / 3**0.5) - 1) < 0.1


@pytest.fixture(scope="module")
def run_dir(adapters, references, tmp_path_factory):
    reference = references("grouped")
    directory = tmp_path_factory.mktemp("lora")
    trainable, _, trained = adapters
    model = ModelConfig(path=str(reference.directory), dtype="float32")
    save_config(
        Config(model=model, lora=LORA, train=TrainConfig(trainable="lora")), directory / "config.yaml"
    )
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(Meta(4, 9, reference.config.to_dict()), trainable.saved(trained))
    return directory


def test_peft_loads_the_export_and_computes_the_merged_model(run_dir, references, make_batch, tmp_path):
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    reference = references("grouped")
    assert convert.export_adapters(run_dir, tmp_path / "peft") == 4
    assert convert.export_run(run_dir, tmp_path / "merged") == 4
    batch = {k: torch.tensor(v) for k, v in make_batch(reference.config).items()}
    valid = batch["attention_mask"].bool()
    load = Qwen2_5_VLForConditionalGeneration.from_pretrained
    with torch.no_grad():
        base = reference.model(**batch).logits[valid]
        merged = load(tmp_path / "merged").eval()(**batch).logits[valid]
        model = PeftModel.from_pretrained(load(reference.directory).eval(), tmp_path / "peft")
        torch.testing.assert_close(model(**batch).logits[valid], merged, atol=2e-4, rtol=1e-4)
    assert (merged - base).abs().max() > 0.5
    # Every tensor of the file found its place: as many as PEFT made, and none is new.
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(names) == 2 * 3 * len(LORA.targets)
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (3, 7.0)


def test_a_run_without_adapters_says_so(run_dir, tmp_path):
    config = convert.load_config(run_dir / "config.yaml")
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "4").symlink_to(run_dir / "checkpoints" / "4")
    train = dataclasses.replace(config.train, trainable="all")
    save_config(dataclasses.replace(config, train=train), other / "config.yaml")
    with pytest.raises(UserError, match=r"train\.trainable all, so it has no adapters"):
        convert.export_adapters(other, tmp_path / "peft")


def rounded(params):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def test_a_base_in_bfloat16_is_half_and_its_adapters_learn_the_same(adapters, tiny_mesh):
    whole, _, trained = adapters
    half = Trainable(whole.base_graphdef, rounded(whole.frozen), "lora", LORA, tiny_mesh, 0)
    as_loaded = Trainable(
        whole.base_graphdef,
        jax.tree.map(lambda x: x.astype(jnp.float32), half.frozen),
        "lora",
        LORA,
        tiny_mesh,
        0,
    )

    def size(tree):
        return sum(x.nbytes for x in jax.tree.leaves(tree))

    assert 2 * size(half.frozen) == size(whole.frozen)
    assert 2 * size(half.policy(trained)) == size(whole.frozen)
    assert {x.dtype for x in jax.tree.leaves(half.fresh(None))} == {jnp.dtype("float32")}

    def gradient(split):
        def loss(trained):
            return jnp.mean(hidden(split.graphdef, split.whole(trained, split.frozen))[..., :7])

        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.jit(jax.grad(loss))(trained))])

    ours, exact, theirs = map(gradient, (half, as_loaded, whole))
    # Of weights that bfloat16 holds, as published ones, nothing is lost; of others, their rounding.
    np.testing.assert_array_equal(ours, exact)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 0 < error < 16 * 2.0**-8, error


def test_exports_of_a_base_in_bfloat16(adapters, references, tiny_mesh, tmp_path):
    reference = references("grouped")
    whole, _, trained = adapters
    half = Trainable(whole.base_graphdef, rounded(whole.frozen), "lora", LORA, tiny_mesh, 0)
    lora_bf16 = dataclasses.replace(LORA, base_dtype="bfloat16")
    model = ModelConfig(path=str(reference.directory), dtype="bfloat16")
    config = Config(model=model, lora=lora_bf16, train=TrainConfig(trainable="lora"))
    save_config(config, tmp_path / "config.yaml")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(Meta(4, 9, reference.config.to_dict(), base=half.base), half.saved(trained))
    convert.export_run(tmp_path, tmp_path / "merged")
    merged = load_params(tmp_path / "merged", reference.config, tiny_mesh, config.param_dtype)
    for ours, theirs in zip(jax.tree.leaves(merged), jax.tree.leaves(half.policy(trained)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    convert.export_adapters(tmp_path, tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype("float32")}
    a = dict(nnx.to_flat_state(trained))[("language_model", "layers", "self_attn", "q_proj", "lora", "A")]
    name = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(tensors[name], a.get_value()[1])


def test_a_fingerprint_sees_one_bit_and_no_mesh(small_model, tiny_mesh):
    _, params = small_model.on(tiny_mesh)
    _, spread = small_model.on(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()))
    mine = fingerprint(params)
    assert fingerprint(spread) == mine
    flat = dict(nnx.to_flat_state(params))
    path = ("language_model", "layers", "mlp", "up_proj", "weight")
    weight = flat[path].get_value()

    def changed(value):
        return fingerprint(nnx.from_flat_state(flat | {path: flat[path].replace(value)}))

    assert changed(weight) == mine
    assert changed(weight.at[1, 2, 3].set(jnp.nextafter(weight[1, 2, 3], jnp.inf))) != mine
    assert changed(weight.at[:2].set(weight[1::-1])) != mine  # two layers exchanged
    assert changed(weight.at[0, 0, :2].set(weight[0, 0, 1::-1])) != mine
    assert fingerprint(rounded(params)) != mine


def test_the_layers_of_the_decoder_have_these_maps(references):
    """The configuration offers exactly the linear maps that a layer has."""
    graphdef, abstract = abstract_model(references("grouped").config)
    _, every = lora.adapted(graphdef, abstract, LoraConfig(rank=1))
    assert {path[3] for path, _ in nnx.to_flat_state(every)} == set(LoraConfig().targets)
