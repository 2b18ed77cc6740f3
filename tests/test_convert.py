"""Runs to Hugging Face directories and back (the command `memocr_jax.convert`)."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from memocr_jax import convert
from memocr_jax.config import Config, MeshConfig, ModelConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import make_mesh
from memocr_jax.models.check import TOLERANCE, check_checkpoint
from memocr_jax.models.hf_files import complete_directory, resolve
from memocr_jax.models.hf_weights import load_params
from memocr_jax.rl.resume import save_run


@pytest.fixture(scope="module")
def run_dir(references, tmp_path_factory):
    """A run whose checkpoint holds the weights of the configuration "grouped"."""
    reference = references("grouped")
    params = load_params(reference.directory, reference.config, make_mesh(MeshConfig(), jax.devices()[:1]))
    directory = tmp_path_factory.mktemp("run")
    settings = Config(model=ModelConfig(path=str(reference.directory), dtype="float32"))
    save_run(directory, settings, reference.config, params)
    return directory


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    target = tmp_path_factory.mktemp("exports") / "hf"
    assert convert.export_run(run_dir, target) == 0
    return target


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_transformers_loads_an_export_and_gives_the_same_logits(exported, references, make_batch):
    from transformers import Qwen2_5_VLForConditionalGeneration

    reference = references("grouped")
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported, output_loading_info=True)
    assert not any(info.values()), info
    batch = {k: torch.tensor(v) for k, v in make_batch(reference.config).items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, reference.model(**batch).logits, atol=0, rtol=0)


def test_an_export_is_complete(exported):
    names = set(files(exported))
    assert {"config.json", "generation_config.json", "preprocessor_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= names
    config = json.loads((exported / "config.json").read_text())
    assert config["torch_dtype"] == "float32" and "text_config" not in config
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(exported).apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], tokenize=False
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>?" in prompt


def test_import_is_the_inverse_of_export(exported, tmp_path):
    convert.import_run(str(exported), tmp_path / "run")
    convert.export_run(tmp_path / "run", tmp_path / "again")
    assert files(tmp_path / "again") == files(exported)


def test_a_checkpoint_of_four_devices_exports_the_same_files(exported, references, tmp_path):
    reference = references("grouped")
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    params = load_params(reference.directory, reference.config, mesh)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(params)} == {4}
    assert any(x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves(params))
    settings = Config(model=ModelConfig(path=str(reference.directory), dtype="float32"))
    save_run(tmp_path / "run", settings, reference.config, params)
    convert.export_run(tmp_path / "run", tmp_path / "hf")
    assert files(tmp_path / "hf") == files(exported)


def test_an_export_in_bfloat16_comes_back_bit_for_bit(run_dir, tmp_path):
    convert.export_run(run_dir, tmp_path / "a", dtype="bfloat16", shard_bytes=100_000)
    assert (tmp_path / "a" / "model.safetensors.index.json").exists()
    convert.import_run(str(tmp_path / "a"), tmp_path / "run")
    convert.export_run(tmp_path / "run", tmp_path / "b", shard_bytes=100_000)
    assert files(tmp_path / "a") == files(tmp_path / "b")


FULL_DISK = """
import sys
from memocr_jax import convert
from memocr_jax.core.errors import run_command
run_command(lambda: convert.main(["export", "--from", sys.argv[1], "--to", sys.argv[2]]))
"""


def test_a_disk_that_fills_up(run_dir, tmp_path):
    """On a real file system of 300 KB: one line, status 2, nothing left behind."""
    mount = tmp_path / "small"
    mount.mkdir()
    namespace = ["unshare", "--mount", "--map-root-user"]
    probe = [*namespace, "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    script = f'mount -t tmpfs -o size=300k tmpfs {mount} && "$@"; status=$?; ls -A {mount}; exit $status'
    command = [sys.executable, "-c", FULL_DISK, str(run_dir), str(mount / "hf")]
    done = subprocess.run([*namespace, "sh", "-c", script, "sh", *command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "", (done.stdout, done.stderr[-2000:])
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "No space left on device" in last and "GB are needed" in last


def test_a_file_that_may_not_grow(run_dir, tmp_path):
    """The same test where nothing can be mounted: a limit on file sizes fails the same write."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [
        sys.executable,
        "-c",
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + FULL_DISK,
    ]
    done = subprocess.run(
        [*command, str(run_dir), str(tmp_path / "hf")], capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "cannot be written (File too large)" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_left_alone(run_dir, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="exists; name a new directory"):
        convert.export_run(run_dir, tmp_path)
    assert files(tmp_path) == {"mine": b"precious"}


def test_an_interrupted_export_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), complete_directory(tmp_path / "hf") as partial:
        (partial / "half").write_text("...")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(run_dir, tmp_path):
    with pytest.raises(UserError, match="not the directory of a run"):
        convert.export_run(tmp_path, tmp_path / "hf")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        convert.export_run(run_dir, tmp_path / "hf", step=7)
    with pytest.raises(UserError, match=r"no tokenizer\.json; name the tokenizer with --tokenizer"):
        convert.export_run(run_dir, tmp_path / "hf", tokenizer=str(tmp_path))


def test_what_cannot_be_imported(exported, tmp_path):
    with pytest.raises(UserError, match="not a hub id"):
        convert.import_run(str(tmp_path / "absent"), tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    tree = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**tree, "model_type": "llama"}))
    with pytest.raises(UserError, match="model_type is 'llama'; only 'qwen2_5_vl' can be loaded"):
        convert.import_run(str(other), tmp_path / "run")
    (other / "config.json").write_text(json.dumps(tree))
    os.truncate(other / "model.safetensors", 1000)
    with pytest.raises(UserError, match="not a complete safetensors file"):
        convert.import_run(str(other), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_revision_is_for_the_hub(exported):
    with pytest.raises(UserError, match="revision 'main' is for hub ids"):
        resolve(exported, "main")


def test_check_finds_equal_layers_and_a_wrong_one(exported, monkeypatch):
    checks = check_checkpoint(exported)
    names = [check.name for check in checks]
    assert names[0] == "visual.blocks.0" and names[-1] == "logits" and "model.layers.2" in names
    assert all(check.equal for check in checks), checks
    # The same table must tell when a layer is wrong: M-RoPE sections in another order.
    from memocr_jax.models import rope

    honest = rope.mrope_angles
    monkeypatch.setattr("memocr_jax.models.text.mrope_angles", lambda pos, config: honest(pos[::-1], config))
    wrong = {check.name: check for check in check_checkpoint(exported)}
    assert wrong["visual.merger"].equal and not wrong["model.layers.0"].equal
    assert wrong["logits"].difference > TOLERANCE


def test_export_reads_float32_checkpoints_in_the_type_asked_for(run_dir, tmp_path):
    convert.export_run(run_dir, tmp_path / "hf", dtype="bfloat16")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    from memocr_jax.models.config import Qwen25VLConfig

    config = Qwen25VLConfig.from_file(tmp_path / "hf")
    params = load_params(tmp_path / "hf", config, mesh, jnp.bfloat16)
    whole = load_params(convert.load_config(run_dir / "config.yaml").model.path, config, mesh)
    for narrow, wide in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
