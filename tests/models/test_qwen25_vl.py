"""The model against transformers' PyTorch model, live, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from memocr_jax.config import MeshConfig
from memocr_jax.core.sharding import make_mesh
from memocr_jax.engine import api
from memocr_jax.models.hf_weights import load_params, table
from memocr_jax.models.qwen25_vl import abstract_model

CONFIGS = (
    "grouped",
    "tied",
    "one_kv_head_per_head",
    "one_kv_head",
    "uneven_mrope",
    "all_blocks_full",
    "no_block_full",
    "window_of_2_tokens",
    "window_of_6_tokens",
    "window_not_a_multiple",
    "wide_merger",
    "merge_of_3",
    "small_patches",
)


QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options: compiling takes most of the time here, and a third of it without optimisation."""


def run_torch(model, batch):
    """Logits, outputs of decoder layers and vision blocks, and gradients of the language-model loss."""
    outputs = {"layers": [], "blocks": []}
    hooks = [
        module.register_forward_hook(lambda _, __, out, to=outputs[kind]: to.append(out.detach().numpy()))
        for kind, modules in (
            ("layers", model.model.language_model.layers),
            ("blocks", model.model.visual.blocks),
        )
        for module in modules
    ]
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    logits = model(**tensors).logits
    for hook in hooks:
        hook.remove()
    ids, mask = tensors["input_ids"], tensors["attention_mask"].bool()
    logp = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    both = mask[:, 1:] & mask[:, :-1]
    model.zero_grad()
    (-(logp * both).sum() / both.sum()).backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return logits.detach().numpy(), outputs, grads


def run_jax(graphdef, params, rows):
    """The same of ours."""

    def loss(params):
        model = nnx.merge(graphdef, params)
        features, blocks = model.visual(rows.vision, keep=lambda x: x)
        embeds = model.embed(rows.tokens, rows.image_slots, features)
        hidden, layers = model.language_model(embeds, rows.mrope_pos, rows.segments, keep=lambda x, k, v: x)
        logits = model.head(hidden)
        logp = jax.nn.log_softmax(logits[:, :-1])
        logp = jnp.take_along_axis(logp, rows.tokens[:, 1:, None], axis=-1)[..., 0]
        valid = (rows.segments[:, 1:] >= 0) & (rows.segments[:, :-1] >= 0)
        return -(logp * valid).sum() / valid.sum(), (logits, layers, blocks)

    (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return *outputs, grads


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_hidden_states_and_gradients_equal_transformers(name, references, make_batch):
    reference = references(name)
    config = reference.config
    batch = make_batch(config)
    logits, outputs, grads = run_torch(reference.model, batch)

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graphdef, _ = abstract_model(config, dtype=jnp.float32)
    params = load_params(reference.directory, config, mesh)
    arguments = {k: v for k, v in batch.items() if k != "mm_token_type_ids"}
    rows = api.pack_inputs(
        config,
        mesh,
        *(arguments[k] for k in ("input_ids", "attention_mask")),
        arguments["pixel_values"],
        arguments["image_grid_thw"],
    )
    lowered = jax.jit(run_jax, static_argnums=0).lower(graphdef, params, rows)
    our_logits, our_layers, our_blocks, our_grads = lowered.compile(QUICK)(params, rows)

    size, length = batch["input_ids"].shape
    valid = batch["attention_mask"].astype(bool)

    def crop(x):
        return np.asarray(x)[..., :size, :length, :][..., valid, :]

    np.testing.assert_allclose(crop(our_logits), logits[valid], atol=2e-4, err_msg="logits")
    for i, layer in enumerate(outputs["layers"]):
        np.testing.assert_allclose(crop(our_layers)[i], layer[valid], atol=2e-4, err_msg=f"decoder layer {i}")
    for i, block in enumerate(outputs["blocks"]):
        # transformers has the patches of all images in window order: ours without the empty slots.
        ours = np.asarray(our_blocks[i])[rows.vision.valid]
        np.testing.assert_allclose(ours, block, atol=2e-4, err_msg=f"vision block {i}")

    ours = dict(nnx.to_flat_state(our_grads))
    theirs = {
        k.replace("model.language_model.", "model.").replace("model.visual.", "visual."): v
        for k, v in grads.items()
    }
    entries = table(our_grads)
    assert {e.name for e in entries} == theirs.keys()
    for entry in entries:
        gradient = np.asarray(ours[entry.path].get_value())
        gradient = gradient if entry.layer is None else gradient[entry.layer]
        expected = theirs[entry.name]
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert error < 1e-3, f"gradient of {entry.name}: relative error {error:.1e}"
