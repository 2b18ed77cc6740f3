"""The released 3B, 7B, 32B and 72B: names, shapes and mesh layouts, without their memory."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import pytest
import torch
from jax.sharding import AbstractMesh, AxisType

from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import param_shardings
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_weights import published_name, table
from memocr_jax.models.qwen25_vl import abstract_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"
# Numbers of parameters: those of these configurations, to be compared with the published files when at hand.
PARAMETERS = {"3b": 3_754_622_976, "7b": 8_292_166_656, "32b": 33_452_718_336, "72b": 73_410_777_344}
# data, fsdp, tensor: a host of 8, a slice of 32, and pods.
MESHES = {
    "3b": [(1, 8, 1), (2, 2, 2), (1, 4, 8)],
    "7b": [(1, 8, 1), (1, 8, 4), (4, 16, 4)],
    "32b": [(1, 32, 1), (1, 16, 8), (2, 64, 4)],
    "72b": [(1, 64, 1), (1, 16, 8), (4, 32, 8)],
}


def mesh_of(shape):
    return AbstractMesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("size", PARAMETERS)
def test_names_and_shapes_are_those_of_transformers(size):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    directory = CONFIGS / f"qwen2.5-vl-{size}"
    config = Qwen25VLConfig.from_file(directory)
    _, abstract = abstract_model(config)
    with torch.device("meta"):
        reference = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(directory))
    # named_parameters counts a tied head once, under the embedding's name, as the files do.
    theirs = {published_name(name): tuple(p.shape) for name, p in reference.named_parameters()}
    ours = {entry.name: entry.shape for entry in table(abstract)}
    assert ours == theirs
    assert sum(math.prod(shape) for shape in ours.values()) == PARAMETERS[size]


@pytest.mark.parametrize(("size", "shape"), [(s, m) for s, meshes in MESHES.items() for m in meshes])
def test_a_mesh_that_divides(size, shape):
    config = Qwen25VLConfig.from_file(CONFIGS / f"qwen2.5-vl-{size}")
    _, abstract = abstract_model(config)
    shardings = param_shardings(abstract, mesh_of(shape))
    per_device = sum(
        math.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True)
    )
    # All but the vision tower (0.7 billion parameters, split over fsdp only) is split over both axes; biases
    # of the tower are whole.
    fsdp_tensor = shape[1] * shape[2]
    assert per_device < PARAMETERS[size] / fsdp_tensor + 0.7e9 / shape[1] + 2e6


def test_a_mesh_that_does_not_divide_names_the_parameter():
    config = Qwen25VLConfig.from_file(CONFIGS / "qwen2.5-vl-7b")
    with pytest.raises(UserError, match=r"mesh.fsdp is 3, which does not divide axis 'embed' \(3584\)"):
        param_shardings(abstract_model(config)[1], mesh_of((1, 3, 1)))
