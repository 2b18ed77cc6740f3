"""A directory of safetensors files as one set of tensors, read in parts or shards and written as a stream."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from memocr_jax.core.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Largest shard, as transformers has it."""

_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Name, type and shape of a tensor in a file."""

    key: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """Read access to a checkpoint: `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Raises UserError when files are absent, truncated, unreadable, contradict the index, or hold tensors of
    other than floating types.
    """

    def __init__(self, directory: str | Path):
        directory = Path(directory)
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._infos: dict[str, TensorInfo] = {}
        index = _read_index(directory)
        names = {SINGLE} if index is None else set(index.values())
        for path in (directory / name for name in sorted(names)):
            file = self._open(path)
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                if key in self._files:
                    raise UserError(f"{path}: tensor {key} is in another shard too")
                self._files[key] = file
                self._infos[key] = _info(file, key, path)
        absent = [f"{key} (in {name})" for key, name in (index or {}).items() if key not in self._files]
        if absent:
            raise UserError(f"{directory / INDEX}: its shards do not hold {', '.join(absent)}")

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, key: str) -> TensorInfo:
        return self._infos[key]

    def read(self, key: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of a tensor (default: all) in the file's type."""
        shape = self._infos[key].shape
        if not index or not shape:
            return self._files[key].get_tensor(key)
        # safetensors, unlike numpy, refuses bounds beyond the end.
        bounds = (s.indices(size) for s, size in zip(index, shape, strict=False))
        return self._files[key].get_slice(key)[tuple(slice(start, stop) for start, stop, _ in bounds)]

    def read_sharded(self, key: str, sharding: jax.sharding.Sharding) -> jax.Array:
        """A tensor in the file's type on the devices of `sharding`; every part is read once."""
        parts: dict[Any, np.ndarray] = {}

        def part(index: tuple[slice, ...]) -> np.ndarray:
            place = tuple((s.start, s.stop) for s in index)
            if place not in parts:
                parts[place] = self.read(key, index)
            return parts[place]

        return jax.make_array_from_callback(self._infos[key].shape, sharding, part)

    def equal(self, key: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are the same, compared a few rows at a time."""
        if self._infos[key].shape != self._infos[other].shape:
            return False
        starts = range(0, self._infos[key].shape[0], rows)
        return all(
            np.array_equal(*(self.read(name, (slice(start, start + rows),)) for name in (key, other)))
            for start in starts
        )

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="np"))
        except FileNotFoundError as error:
            named = "" if path.name == SINGLE else f", which {INDEX} names,"
            raise UserError(f"{path}{named} does not exist") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error


def write_tensors(
    directory: Path,
    infos: Sequence[TensorInfo],
    tensors: Iterable[np.ndarray],
    shard_bytes: int,
    report: Callable[[int, int], None],
    write: bool = True,
) -> None:
    """Write tensors, in the given order, to one file or to shards with an index, as they come.

    With `write` False the tensors are only fetched, for processes that take part in fetching them.
    Raises UserError when the disk is full or the directory cannot be written.
    """
    shards = _split(infos, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    total, done = sum(info.nbytes for info in infos), 0
    stream = iter(tensors)
    try:
        for name, shard in zip(names, shards, strict=True):
            with open(directory / name, "wb") if write else contextlib.nullcontext() as file:
                if write:
                    file.write(_header(shard))
                for info in shard:
                    tensor = next(stream)
                    if tensor.dtype != info.dtype or tensor.shape != info.shape:
                        raise AssertionError(f"{info} announced, {tensor.dtype}{tensor.shape} given")
                    if write:
                        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
                    done += info.nbytes
                    report(done, total)
                if write:
                    file.flush()
                    os.fsync(file.fileno())
        if write and len(shards) > 1:
            weight_map = {info.key: name for name, shard in zip(names, shards, strict=True) for info in shard}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written ({error.strerror}); {total / 1e9:.2f} GB are needed"
        ) from error


def _split(infos: Sequence[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    """Cut into shards of at most `shard_bytes` (a larger tensor is a shard of its own)."""
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in infos:
        if shards[-1] and size + info.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.nbytes
    return shards


def _header(infos: Sequence[TensorInfo]) -> bytes:
    """A safetensors header: its length in 8 bytes, then JSON padded with spaces to a multiple of 8.

    The library can only write tensors that are all in memory. A file is this header and the data in order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in infos:
        header[info.key] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_index(directory: Path) -> dict[str, str] | None:
    """Key -> shard of the index, or None when the checkpoint is a single file."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    path = directory / INDEX
    if not path.exists():
        if not (directory / SINGLE).exists():
            raise UserError(f"{directory} holds neither {SINGLE} nor {INDEX}")
        return None
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an index of safetensors files ({error!r})") from error
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise UserError(f"{path}: shard {outside[0]!r} is not a file name")
    absent = sorted({name for name in weight_map.values() if not (directory / name).is_file()})
    if absent:
        raise UserError(f"{path} names shards that do not exist: {', '.join(absent)}")
    return weight_map


def _info(file: Any, key: str, path: Path) -> TensorInfo:
    part = file.get_slice(key)
    if part.get_dtype() not in _DTYPES:
        raise UserError(
            f"{path}: tensor {key} has type {part.get_dtype()}; only {', '.join(_DTYPES)} can be loaded "
            "(quantised checkpoints cannot)"
        )
    return TensorInfo(key, _DTYPES[part.get_dtype()], tuple(part.get_shape()))
