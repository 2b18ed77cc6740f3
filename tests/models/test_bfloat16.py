"""bfloat16: the same next token as transformers' wherever bfloat16 can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memocr_jax.config import MeshConfig
from memocr_jax.core.sharding import make_mesh
from memocr_jax.engine.api import logits
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.qwen25_vl import abstract_model


def agreement(model, reference, batch):
    """Ours and transformers' in bfloat16: (share of positions with the same argmax, positions, positions in
    all, our error over transformers' error).

    Counted are positions whose top-2 margin in transformers exceeds the noise, which is the 99th percentile
    of how far its bfloat16 logits are from its float32 logits. Errors are root-mean-square, from float32.
    """
    tensors = {k: torch.tensor(v) for k, v in batch.items()}
    with torch.no_grad():
        exact = reference.float()(**tensors).logits.numpy()
        theirs = reference.bfloat16()(**tensors).logits.float().numpy()
    reference.float()
    ours = logits(model, **batch)
    valid = batch["attention_mask"].astype(bool)
    exact, theirs, ours = exact[valid], theirs[valid], ours[valid]
    noise = np.quantile(np.abs(theirs - exact), 0.99)
    top = np.sort(theirs, axis=-1)
    clear = top[:, -1] - top[:, -2] > noise
    error = np.sqrt(np.mean((ours - exact) ** 2) / np.mean((theirs - exact) ** 2))
    return (ours.argmax(-1) == theirs.argmax(-1))[clear].mean(), clear.sum(), len(clear), error


@pytest.mark.parametrize("name", ["grouped", "tied", "wide_merger"])
def test_same_argmax_where_the_margin_exceeds_the_noise(name, references, make_batch, tmp_path):
    import copy

    import jax
    import jax.numpy as jnp
    from flax import nnx

    reference = references(name)
    batch = make_batch(reference.config)
    text = np.random.default_rng(0).integers(0, 300, (6, batch["input_ids"].shape[1]))
    for key, extra in (("input_ids", text), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        rows = np.broadcast_to(extra, text.shape)
        batch[key] = np.concatenate([batch[key], rows])
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graphdef, _ = abstract_model(reference.config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model = nnx.merge(graphdef, load_params(reference.directory, reference.config, mesh, jnp.bfloat16))
    share, positions, total, error = agreement(model, copy.deepcopy(reference.model), batch)
    print(
        f"{name}: same argmax on {share:.4f} of {positions} of {total} positions; error {error:.2f} of theirs"
    )
    assert positions > total / 3
    assert share >= 0.99, f"{share:.4f} of {positions} positions"
    assert error < 1.05, "our rounding is worse than transformers' own"
