"""Compares a checkpoint in this port with transformers' PyTorch model, layer by layer, in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memocr_jax.config import MeshConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import make_mesh
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.images import pack_patches, prepare_image
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.models.rope import mrope_positions

TOLERANCE = 1e-3
"""Largest difference, relative to the largest value of a layer's output, that counts as equal in float32."""


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """One line of the table."""

    name: str
    largest: float
    """Largest absolute value of transformers' output."""
    difference: float
    """Largest absolute difference."""

    @property
    def equal(self) -> bool:
        return self.difference <= TOLERANCE * max(self.largest, 1e-6)


def check_checkpoint(directory: str | Path, seed: int = 0) -> list[LayerCheck]:
    """Run both models on text with an image and compare every vision block and decoder layer.

    Raises UserError when torch is not installed or the checkpoint cannot be loaded.
    """
    try:
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration
    except ImportError:
        raise UserError("check needs torch; install the dev extra: pip install memocr_jax[dev]") from None
    config = Qwen25VLConfig.from_file(directory)
    ids, pixels, grid = _inputs(config, seed)
    ours = _run_ours(Path(directory), config, ids, pixels, grid)  # first, because its errors are clear
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    return [
        LayerCheck(name, float(np.abs(theirs).max()), float(np.abs(theirs - ours[name]).max()))
        for name, theirs in _run_theirs(model, config, ids, pixels, grid).items()
    ]


def print_table(checks: Sequence[LayerCheck]) -> None:
    """Print the comparison; raises UserError when a layer differs (after the table)."""
    from rich.console import Console
    from rich.table import Table

    columns = Table(
        "layer", "largest value", "largest difference", "", title="memocr_jax against transformers"
    )
    for check in checks:
        columns.add_row(
            check.name,
            f"{check.largest:.3e}",
            f"{check.difference:.3e}",
            "equal" if check.equal else "DIFFERS",
        )
    Console().print(columns)
    wrong = [check.name for check in checks if not check.equal]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(checks)} outputs differ, the first is {wrong[0]}")


def _inputs(config: Qwen25VLConfig, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Token ids of text around one image with cut-off windows, its patches and its grid."""
    rng = np.random.default_rng(seed)
    tokens = (config.vision.window_tokens + 1, 2 * config.vision.window_tokens + 1)
    shape = tuple(side * config.vision.token_px for side in tokens)
    pixels, grid = prepare_image(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), config.vision)
    special = (config.image_token_id, config.video_token_id, config.vision_start_token_id)
    text = rng.integers(0, min(*special, config.text.vocab_size), 48)
    image = [config.vision_start_token_id, *[config.image_token_id] * (tokens[0] * tokens[1])]
    return np.array([*text[:16], *image, config.vision_end_token_id, *text[16:]]), pixels, grid


def _run_ours(
    directory: Path, config: Qwen25VLConfig, ids: np.ndarray, pixels: np.ndarray, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graphdef, _ = abstract_model(config, dtype=jnp.float32)
    params = load_params(directory, config, mesh)
    packed, (slots,) = pack_patches([pixels], [grid], config.vision)
    image_slots = np.full(ids.shape, -1, np.int32)
    image_slots[ids == config.image_token_id] = slots
    positions = jnp.asarray(mrope_positions(ids, [grid], config), jnp.int32)[:, None]
    tokens, image_slots = (jnp.asarray(x[None], jnp.int32) for x in (ids, image_slots))
    vision = jax.tree.map(jnp.asarray, packed)

    @jax.jit
    def run(params: nnx.State) -> Any:
        model = nnx.merge(graphdef, params)
        features, blocks = model.visual(vision, keep=lambda x: x)
        embeds = model.embed(tokens, image_slots, features)
        segments = jnp.zeros((1, len(ids)), jnp.int32)
        hidden, layers = model.language_model(embeds, positions, segments, keep=lambda x, k, v: x)
        flat = features.reshape(-1, features.shape[-1])[slots]
        return flat, blocks, layers, hidden, model.head(hidden)

    features, blocks, layers, hidden, logits = jax.tree.map(np.asarray, run(params))
    return {
        **{f"visual.blocks.{i}": block[packed.valid] for i, block in enumerate(blocks)},
        "visual.merger": features,
        **{f"model.layers.{i}": layer[0] for i, layer in enumerate(layers)},
        "model.norm": hidden[0],
        "logits": logits[0],
    }


def _run_theirs(
    model: Any, config: Qwen25VLConfig, ids: np.ndarray, pixels: np.ndarray, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    import torch

    outputs: dict[str, np.ndarray] = {}
    modules = {
        **{f"visual.blocks.{i}": block for i, block in enumerate(model.model.visual.blocks)},
        **{f"model.layers.{i}": layer for i, layer in enumerate(model.model.language_model.layers)},
        "model.norm": model.model.language_model.norm,
    }

    def hook(name: str) -> Any:
        return lambda module, args, out: outputs.__setitem__(name, out.reshape(-1, out.shape[-1]).numpy())

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    tokens, frames = torch.tensor(ids)[None], torch.tensor([(1, *grid)])
    with torch.no_grad():
        logits = model(
            input_ids=tokens,
            pixel_values=torch.tensor(pixels),
            image_grid_thw=frames,
            mm_token_type_ids=(tokens == config.image_token_id).int(),
        ).logits
        merged = model.model.get_image_features(torch.tensor(pixels), frames).pooler_output[0]
    for each in hooks:
        each.remove()
    outputs["logits"], outputs["visual.merger"] = logits[0].numpy(), merged.numpy()
    order = [n for n in outputs if n.startswith("visual.blocks")] + ["visual.merger"]
    order += [n for n in outputs if n.startswith("model.")] + ["logits"]
    return {name: outputs[name] for name in order}
