"""Low-rank adapters (LoRA, arXiv 2106.09685) of the decoder's linear maps, and their exchange with PEFT.

Why not qwix 0.1.8 (tried with jax 0.10.2 and flax 0.12.8): it wraps one method of an NNX model, and ours is
used by several. It makes the adapters while that method is traced, on the module that it finds there; our
layers are stacked and rebuilt from their slices inside `lax.scan`, where such adapters would be lost with the
slice. It does not come that far: the random generators that it puts into every module have no axis `layers`,
which the scan refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from memocr_jax.core.sharding import param_shardings
from memocr_jax.models.layers import Adapter, Linear


@runtime_checkable
class LoraSettings(Protocol):
    """The section `lora` of the configuration."""

    rank: int
    alpha: float
    targets: Sequence[str]


def adapted(
    graphdef: nnx.GraphDef, abstract: nnx.State, lora: LoraSettings
) -> tuple[nnx.GraphDef, nnx.State]:
    """The graph of a model with adapters, and its abstract adapters; `abstract` describes the model without.

    The graph takes the adapters and the model's own parameters: `nnx.merge(graphdef, adapters, params)`.
    """

    def build(params: nnx.State) -> nnx.Module:
        model = nnx.merge(graphdef, params)
        for name, linear in _linears(model):
            if name.rpartition(".")[2] in lora.targets:
                linear.lora = nnx.data(Adapter(linear.weight, lora.rank, lora.alpha))
        return model

    graph, adapters, _ = nnx.split(nnx.eval_shape(build, abstract), nnx.LoRAParam, ...)
    return graph, adapters


def init_adapters(abstract_adapters: nnx.State, mesh: Mesh, seed: int) -> nnx.State:
    """Fresh adapters: A is uniform within 1 / sqrt(inputs), as in PEFT, and B is zero: no change yet."""

    def init(key: jax.Array) -> nnx.State:
        values = {}
        for number, (path, variable) in enumerate(nnx.to_flat_state(abstract_adapters)):
            shape, dtype = variable.get_value().shape, variable.get_value().dtype
            bound = shape[-1] ** -0.5
            values[path] = variable.replace(
                jax.random.uniform(jax.random.fold_in(key, number), shape, dtype, -bound, bound)
                if path[-1] == "A"
                else jnp.zeros(shape, dtype)
            )
        return nnx.from_flat_state(values)

    return jax.jit(init, out_shardings=param_shardings(abstract_adapters, mesh))(jax.random.key(seed))


def merge(params: nnx.State, adapters: nnx.State, lora: LoraSettings) -> nnx.State:
    """The model without adapters that computes the same: W + alpha / rank * B A, in the parameters' type."""
    merged = dict(nnx.to_flat_state(params))
    flat = dict(nnx.to_flat_state(adapters))
    for path in {path[:-2] for path in flat}:
        weight, a, b = merged[(*path, "weight")], flat[(*path, "lora", "A")], flat[(*path, "lora", "B")]
        merged[(*path, "weight")] = weight.replace(
            _merge(weight.get_value(), a.get_value(), b.get_value(), lora.alpha / lora.rank)
        )
    return nnx.from_flat_state(merged)


def _merge(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    product = jnp.einsum("...or,...ri->...oi", b, a, precision="highest", preferred_element_type=jnp.float32)
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)


def _linears(model: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """(dotted path, module) of every linear map of the decoder's layers."""
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if isinstance(module, Linear) and name.startswith("language_model.layers."):
            yield name, module


def save_peft(
    directory: str | Path, adapters: nnx.State, lora: LoraSettings, base: str, dtype: Any = np.float32
) -> None:
    """Write adapters as PEFT loads them onto transformers' Qwen2.5-VL: adapter_config.json and
    adapter_model.safetensors. The directory must exist; `base` names the model that they belong to."""
    from safetensors.numpy import save_file

    tensors = {}
    for path, variable in nnx.to_flat_state(adapters):
        *module, _, letter = path  # language_model.layers.<block>.<linear>.lora.A
        for layer, value in enumerate(np.asarray(variable.get_value())):
            name = ".".join(["language_model.layers", str(layer), *module[2:]])
            tensors[f"base_model.model.model.{name}.lora_{letter}.weight"] = np.ascontiguousarray(
                value.astype(dtype)
            )
    directory = Path(directory)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    # A pattern, because the vision tower has linear maps of the same names.
    targets = "|".join(re.escape(name) for name in lora.targets)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({targets})",
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
