"""Hugging Face checkpoints of Qwen2.5-VL, both directions: one table of names, every key exactly once.

Our parameters have the element order of the published files, so import and export only slice and stack:
what is exported and imported again is the same bit for bit.
"""

from __future__ import annotations

import dataclasses

from flax import nnx


# Our path -> published name, longest prefix first; {} stands for the layer.
_PREFIXES = {
    "visual.blocks.": "visual.blocks.{}.",
    "visual.patch_embed.weight": "visual.patch_embed.proj.weight",
    "visual.merger.fc1.": "visual.merger.mlp.0.",
    "visual.merger.fc2.": "visual.merger.mlp.2.",
    "visual.": "visual.",
    "language_model.embed_tokens": "model.embed_tokens.weight",
    "language_model.layers.": "model.layers.{}.",
    "language_model.norm.": "model.norm.",
    "lm_head": "lm_head.weight",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a published checkpoint and where it lives in our state."""

    name: str
    """Published key."""
    path: tuple[str, ...]
    """Path of the parameter in the model's state."""
    layer: int | None
    """Index on the parameter's leading `layers` axis, or None for a parameter that is not stacked."""
    shape: tuple[int, ...]


def table(abstract_state: nnx.State) -> list[Entry]:
    """Every tensor of a published checkpoint of the model that `abstract_state` describes, in our order."""
    entries = []
    for path, variable in nnx.to_flat_state(abstract_state):
        ours = ".".join(path)
        prefix = next(p for p in _PREFIXES if ours.startswith(p))
        name = _PREFIXES[prefix] + ours.removeprefix(prefix)
        shape = tuple(variable.get_value().shape)
        if variable.logical_axes[0] == "layers":
            entries += [Entry(name.format(i), path, i, shape[1:]) for i in range(shape[0])]
        else:
            entries.append(Entry(name, path, None, shape))
    return entries


def published_name(key: str) -> str:
    """The published key of a tensor, given that or the key that transformers 5 uses in memory."""
    for ours, published in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if key.startswith(ours):
            return published + key.removeprefix(ours)
    return key
