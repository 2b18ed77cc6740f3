"""Reads and writes Hugging Face checkpoints of Qwen2.5-VL by one table of names, every key exactly once.

Our parameters have the element order of the published files, so import and export only slice and stack:
what is exported and imported again is the same bit for bit. Both are streamed, one tensor at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memocr_jax.core.errors import UserError
from memocr_jax.core.sharding import param_shardings, replicated
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.layers import LAYERS
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.models.safetensors_dir import SHARD_BYTES, TensorFiles, TensorInfo, write_tensors

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after every tensor."""

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
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class TableEntry:
    """One tensor of a published checkpoint and where it lives in our state."""

    name: str
    """Published key."""
    path: tuple[str, ...]
    """Path of the parameter in the model's state."""
    layer: int | None
    """Index on the parameter's leading `layers` axis, or None for a parameter that is not stacked."""
    shape: tuple[int, ...]


def table(abstract_state: nnx.State) -> list[TableEntry]:
    """Every tensor of a published checkpoint of the model that `abstract_state` describes, in our order."""
    entries = []
    for path, variable in nnx.to_flat_state(abstract_state):
        ours = ".".join(path)
        prefix = next(p for p in _PREFIXES if ours.startswith(p))
        name = _PREFIXES[prefix] + ours.removeprefix(prefix)
        shape = tuple(variable.get_value().shape)
        if variable.logical_axes[0] == LAYERS:
            entries += [TableEntry(name.format(i), path, i, shape[1:]) for i in range(shape[0])]
        else:
            entries.append(TableEntry(name, path, None, shape))
    return entries


def published_name(key: str) -> str:
    """The published key of a tensor, given that key or the one transformers 5 uses in memory."""
    for in_memory, published in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if key.startswith(in_memory):
            return published + key.removeprefix(in_memory)
    return key


def load_params(
    directory: str | Path,
    config: Qwen25VLConfig,
    mesh: Mesh,
    dtype: Any = jnp.float32,
    report: Report = lambda done, total: None,
) -> nnx.State:
    """Read a checkpoint (one safetensors file, or shards with an index) onto a mesh.

    Each tensor is read once, in the parts this process has devices for, cast on the device and put into its
    place there; beyond the device arrays the host holds about one tensor.

    Args:
        directory: holds `model.safetensors` or `model.safetensors.index.json` with its shards.
        config: what the checkpoint must hold; dtype: type of the parameters.
        report: called after every tensor.

    Returns:
        The parameters, as `nnx.split(Qwen25VL(config))` orders them, with `param_shardings`.

    Raises:
        UserError: files missing, truncated or unreadable; keys missing, unknown or misshapen (all by name).
    """
    _, abstract = abstract_model(config, param_dtype=dtype)
    shardings = dict(nnx.to_flat_state(param_shardings(abstract, mesh)))
    variables = dict(nnx.to_flat_state(abstract))
    with TensorFiles(directory) as files:
        keys = _match(files, table(abstract), config, str(directory))
        total, done = sum(files.info(key).nbytes for key in keys.values()), 0
        arrays: dict[tuple[str, ...], jax.Array] = {}
        for entry, key in keys.items():
            sharding = shardings[entry.path].get_value()
            if entry.layer is None:
                piece = files.read_sharded(key, sharding)
                arrays[entry.path] = piece.astype(dtype)
            else:
                if entry.path not in arrays:
                    shape = variables[entry.path].get_value().shape
                    arrays[entry.path] = jnp.zeros(shape, dtype, device=sharding)
                layer_spec = PartitionSpec(*sharding.spec[1:])
                piece = files.read_sharded(key, NamedSharding(mesh, layer_spec))
                arrays[entry.path] = _place(sharding)(arrays[entry.path], piece, entry.layer)
            # Waiting bounds the tensors in flight: reads are faster than transfers to a device.
            jax.block_until_ready(arrays[entry.path])
            done += files.info(key).nbytes
            report(done, total)
        if config.text.tie_word_embeddings:
            _check_tied(files, str(directory))
    return nnx.from_flat_state([(path, variables[path].replace(array)) for path, array in arrays.items()])


def save_params(
    params: nnx.State,
    directory: str | Path,
    dtype: Any = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda done, total: None,
) -> None:
    """Write parameters of any mesh in the published layout, shards of at most `shard_bytes` with an index.

    One tensor at a time is brought to the host; with several processes all must call this, the first writes.
    The directory must exist; `memocr_jax.convert` writes whole checkpoints, atomically.

    Args:
        dtype: type of the tensors in the files, default: that of the parameters.

    Raises:
        UserError: the files cannot be written (a full disk).
    """
    arrays = {path: variable.get_value() for path, variable in nnx.to_flat_state(params)}
    dtype = np.dtype(dtype or next(iter(arrays.values())).dtype)

    def fetch(entry: TableEntry) -> np.ndarray:
        return np.asarray(_fetch(arrays[entry.path], entry.layer, dtype))

    save_entries(table(params), fetch, directory, dtype, shard_bytes=shard_bytes, report=report)


def save_entries(
    entries: Sequence[TableEntry],
    fetch: Callable[[TableEntry], np.ndarray],
    directory: str | Path,
    dtype: Any,
    *,
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda done, total: None,
) -> None:
    """Write the tensors that `fetch` gives, one at a time and in the order of `entries`, as `save_params`."""
    infos = [TensorInfo(entry.name, np.dtype(dtype), entry.shape) for entry in entries]
    tensors = (fetch(entry).astype(dtype) for entry in entries)
    write_tensors(Path(directory), infos, tensors, shard_bytes, report, write=jax.process_index() == 0)


def _match(
    files: TensorFiles, entries: list[TableEntry], config: Qwen25VLConfig, source: str
) -> dict[TableEntry, str]:
    """The file's key of every entry. Raises UserError that lists all keys that do not fit."""
    by_name: dict[str, str] = {}
    problems = []
    for key in files.names():
        name = published_name(key)
        if name in by_name:
            problems.append(f"{by_name[name]} and {key} are the same tensor")
        by_name[name] = key
    if config.text.tie_word_embeddings:
        by_name.pop(_HEAD, None)  # a copy of the embedding, see `_check_tied`
    found = {entry: by_name.pop(entry.name) for entry in entries if entry.name in by_name}
    missing = [f"{e.name} {list(e.shape)}" for e in entries if e not in found]
    unknown = [f"{key} {list(files.info(key).shape)}" for key in by_name.values()]
    misshapen = [
        f"{key} is {list(files.info(key).shape)}, must be {list(entry.shape)}"
        for entry, key in found.items()
        if files.info(key).shape != entry.shape
    ]
    for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen)):
        if names:
            problems.append(f"{len(names)} {kind}: {', '.join(names)}")
    if problems:
        raise UserError(f"{source} does not hold the model of its config.json: {'; '.join(problems)}")
    return found


def _check_tied(files: TensorFiles, source: str) -> None:
    """Raise UserError when a tied checkpoint carries a head that is no copy of the embedding."""
    names = {published_name(key): key for key in files.names()}
    if _HEAD in names and not files.equal(names[_EMBEDDING], names[_HEAD]):
        raise UserError(
            f"{source}: tie_word_embeddings is true, but {names[_HEAD]} differs from {names[_EMBEDDING]}; "
            "set tie_word_embeddings to false in config.json"
        )


@functools.cache
def _place(sharding: NamedSharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """A function that writes one layer into a stack in place and casts it, on the devices."""

    def place(stack: jax.Array, piece: jax.Array, layer: int | jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, piece.astype(stack.dtype), layer, 0)

    return jax.jit(place, donate_argnums=0, out_shardings=sharding)


def _fetch(array: Any, layer: int | None, dtype: np.dtype) -> Any:
    """One whole tensor on this host, cast on the device."""
    if isinstance(array, jax.Array) and isinstance(array.sharding, NamedSharding):
        whole = replicated(array.sharding.mesh)
    else:
        whole = None
    return _fetcher(whole, layer is not None, dtype)(array, layer or 0)


@functools.cache
def _fetcher(whole: NamedSharding | None, stacked: bool, dtype: np.dtype) -> Callable[[Any, int], jax.Array]:
    def fetch(array: jax.Array, layer: int) -> jax.Array:
        one = jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False) if stacked else array
        return one.astype(dtype)

    return jax.jit(fetch, out_shardings=whole)
