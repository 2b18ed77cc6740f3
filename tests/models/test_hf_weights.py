"""Checkpoints both ways: bit for bit, both key layouts, bounded memory, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memocr_jax.config import MeshConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import make_mesh
from memocr_jax.models.hf_weights import load_params, published_name, save_params

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture
def checkpoint(references, tmp_path):
    """(tensors in the published layout, configuration, writer of a directory from tensors)."""
    reference = references("grouped")
    tensors = {published_name(k): v for k, v in load_file(reference.directory / SINGLE).items()}

    def write(changed, name=SINGLE):
        save_file(changed, tmp_path / name, {"format": "pt"})
        return tmp_path

    return tensors, reference.config, write


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["grouped", "tied"])
def test_export_and_import_are_bit_exact(references, mesh, tmp_path, name, dtype):
    reference = references(name)
    params = load_params(reference.directory, reference.config, mesh, dtype)
    seen = []
    save_params(params, tmp_path, shard_bytes=60_000, report=lambda done, total: seen.append((done, total)))
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    # A shard is its tensors and a header; only one with a single larger tensor may exceed the limit.
    for shard in shards:
        tensors = load_file(shard)
        assert sum(t.nbytes for t in tensors.values()) <= 60_000 or len(tensors) == 1
        assert all(t.dtype == dtype for t in tensors.values())
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == seen[-1][0] == seen[-1][1]
    assert ("lm_head.weight" in index["weight_map"]) == (name == "grouped")
    assert all(k.startswith(("visual.", "model.", "lm_head.")) for k in index["weight_map"])
    back = load_params(tmp_path, reference.config, mesh, dtype)
    assert jax.tree.structure(back) == jax.tree.structure(params) and same(back, params)


def test_both_key_layouts_are_the_same_model(checkpoint, mesh, references):
    tensors, config, write = checkpoint
    expected = load_params(references("grouped").directory, config, mesh)

    def in_memory(key):
        if key.startswith("visual."):
            return "model." + key
        return key.replace("model.", "model.language_model.") if key.startswith("model.") else key

    for layout in (tensors, {in_memory(k): v for k, v in tensors.items()}):
        assert same(load_params(write(layout), config, mesh), expected)


def test_bfloat16_files_are_widened_exactly(checkpoint, mesh):
    tensors, config, write = checkpoint
    narrow = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    params = load_params(write(narrow), config, mesh, jnp.float32)
    got = params["language_model"]["embed_tokens"][...]
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, narrow["model.embed_tokens.weight"].astype(np.float32))


def test_every_key_that_does_not_fit_is_listed(checkpoint, mesh):
    tensors, config, write = checkpoint
    wrong = dict(tensors)
    del wrong["model.layers.1.mlp.up_proj.weight"]
    wrong["model.layers.9.extra"] = np.zeros((2, 3), np.float32)
    wrong["visual.merger.ln_q.weight"] = np.zeros(41, np.float32)
    with pytest.raises(UserError) as error:
        load_params(write(wrong), config, mesh)
    assert "1 missing: model.layers.1.mlp.up_proj.weight [80, 48]" in str(error.value)
    assert "1 unknown: model.layers.9.extra [2, 3]" in str(error.value)
    assert "1 misshapen: visual.merger.ln_q.weight is [41], must be [40]" in str(error.value)


def test_a_tensor_in_both_layouts_is_refused(checkpoint, mesh):
    tensors, config, write = checkpoint
    twice = {**tensors, "model.language_model.norm.weight": tensors["model.norm.weight"]}
    with pytest.raises(UserError, match="are the same tensor"):
        load_params(write(twice), config, mesh)


def test_a_tied_head_must_be_the_embedding(checkpoint, mesh, references):
    reference = references("tied")
    tensors = load_file(reference.directory / SINGLE)
    embedding = next(v for k, v in tensors.items() if k.endswith("embed_tokens.weight"))
    _, _, write = checkpoint
    load_params(write({**tensors, "lm_head.weight": embedding}), reference.config, mesh)
    with pytest.raises(UserError, match=r"tie_word_embeddings is true, but lm_head.weight differs"):
        load_params(write({**tensors, "lm_head.weight": embedding + 1}), reference.config, mesh)


def test_types_that_are_not_weights(checkpoint, mesh):
    tensors, config, write = checkpoint
    quantised = {**tensors, "model.norm.weight": np.zeros(48, np.int8)}
    with pytest.raises(UserError, match=r"model.norm.weight has type I8"):
        load_params(write(quantised), config, mesh)


def test_a_truncated_file(checkpoint, mesh):
    tensors, config, write = checkpoint
    directory = write(tensors)
    whole = (directory / SINGLE).read_bytes()
    for length in (5, 100, len(whole) - 1):
        (directory / SINGLE).write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"not a complete safetensors file .*; copy it again"):
            load_params(directory, config, mesh)


def test_indexes_that_lie(checkpoint, mesh):
    tensors, config, write = checkpoint
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor"):
        load_params(write({}, "other.safetensors"), config, mesh)
    directory = write(tensors, "a.safetensors")
    index = directory / INDEX

    def use(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return pytest.raises(UserError)

    everything = dict.fromkeys(tensors, "a.safetensors")
    with use({**everything, "model.norm.weight": "b.safetensors"}) as error:
        load_params(directory, config, mesh)
    assert "names shards that do not exist: b.safetensors" in str(error.value)
    with use({**everything, "model.ghost": "a.safetensors"}) as error:
        load_params(directory, config, mesh)
    assert "do not hold model.ghost (in a.safetensors)" in str(error.value)
    with use({**everything, "model.norm.weight": "../a.safetensors"}) as error:
        load_params(directory, config, mesh)
    assert "is not a file name" in str(error.value)
    index.write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        load_params(directory, config, mesh)


def test_another_size_of_model(checkpoint, mesh):
    tensors, config, write = checkpoint
    larger = dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=4))
    with pytest.raises(UserError, match=r"12 missing: .*model.layers.3.self_attn.v_proj.weight"):
        load_params(write(tensors), larger, mesh)


STREAMING = """
import re, sys
import jax, jax.numpy as jnp
from memocr_jax.config import MeshConfig
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from memocr_jax.models.hf_weights import load_params, save_params
from memocr_jax.models.qwen25_vl import init_params
from memocr_jax.core.sharding import make_mesh

config = Qwen25VLConfig(
    text=TextConfig(vocab_size=16384, hidden_size=512, intermediate_size=4096, num_hidden_layers=6,
                    num_attention_heads=4, num_key_value_heads=2, mrope_section=(16, 24, 24)),
    vision=VisionConfig(depth=1, hidden_size=64, intermediate_size=96, num_heads=2, out_hidden_size=512),
)
if sys.argv[1] == "save":
    save_params(init_params(config, 0, param_dtype=jnp.bfloat16), sys.argv[2])
else:
    def memory(field):
        return 1024 * int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    load_params(sys.argv[2], config, mesh)  # compiles; its arrays are freed
    before, worst = memory("RssAnon"), 0
    def report(done, total):
        global worst
        arrays = sum(x.nbytes for x in jax.live_arrays())
        worst = max(worst, memory("RssAnon") - before - arrays)
    params = load_params(sys.argv[2], config, mesh, report=report)
    print(worst, max(x.nbytes for x in jax.tree.leaves(params) if x.ndim == 2))
"""


def test_host_memory_of_an_import_is_bounded(tmp_path):
    """Beyond the arrays themselves, at most twice the largest tensor (here the 33 MB embedding)."""
    run = [sys.executable, "-c", STREAMING]
    subprocess.run([*run, "save", str(tmp_path)], check=True, capture_output=True)
    done = subprocess.run([*run, "load", str(tmp_path)], check=True, capture_output=True, text=True)
    extra, largest = map(int, done.stdout.split())
    assert largest == 16384 * 512 * 4
    assert extra <= 2 * largest, (
        f"{extra / 1e6:.0f} MB beyond the arrays, the largest tensor has {largest / 1e6:.0f}"
    )
