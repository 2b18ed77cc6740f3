"""Where arrays live. The only file that names mesh axes.

Parameters carry logical axes (what a dimension means); the table below says over which mesh axis each is
split. `data` holds copies of the parameters, `fsdp` splits them and the batch (arXiv 2004.13336), `tensor`
splits heads and channels of a layer (arXiv 1909.08053).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from memocr_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""Mesh axes over which the leading axis of a batch is split."""

RULES: dict[str, str | None] = {
    "layers": None,
    # decoder
    "vocab": "tensor",
    "embed": "fsdp",
    "q_heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "lora_rank": None,
    # vision tower: about 0.7 of 8 billion parameters; its fused QKV and widths do not split by heads
    "vision_embed": "fsdp",
    "vision_qkv": None,
    "vision_heads": None,
    "vision_mlp": None,
    "merger_in": "fsdp",
    "merger_inner": "tensor",
    "channels": None,
    "frames": None,
    "patch": None,
}
"""Logical axis -> mesh axis, or None where it is never split."""


@runtime_checkable
class MeshSizes(Protocol):
    """The section `mesh` of the configuration."""

    data: int
    fsdp: int
    tensor: int


def make_mesh(config: MeshSizes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x fsdp x tensor over `devices` (default: all of this job).

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(getattr(config, axis) for axis in AXES)
    if np.prod(shape) != len(devices):
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.tensor is {' x '.join(map(str, shape))} = {int(np.prod(shape))}, "
            f"but there are {len(devices)} devices; for example set mesh.fsdp to "
            f"{max(1, len(devices) // max(1, shape[0] * shape[2]))}"
        )
    return Mesh(np.array(by_process(devices)).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def by_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices, in an order in which those of a process follow each other.

    So `tensor` stays within a host and a process's rows of a batch follow each other (`own_rows`).
    jax.make_mesh follows the torus instead: over a v5e slice of 16 x 16 it lays `tensor` 4 across two hosts,
    and over a v6e of 8 x 8 it finds no place for it.
    """
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def split_devices(rollout: int) -> tuple[list[jax.Device], list[jax.Device]]:
    """(this process's devices for rollouts, all processes' devices for the update).

    `rollout` (engine.devices) devices of each process sample and the others train; with 0 all do both.
    Raises UserError when no device would be left to train.
    """
    devices = jax.devices()
    own = [device for device in devices if device.process_index == jax.process_index()]
    if not rollout:
        return own, devices
    if rollout >= len(own):
        raise UserError(
            f"engine.devices is {rollout}, but a process has {len(own)} devices and needs some to train; "
            "use 0 (all devices sample and train)" + (f" or at most {len(own) - 1}" if len(own) > 1 else "")
        )
    taken, kept = {}, []
    for device in devices:
        taken[device.process_index] = taken.get(device.process_index, 0) + 1
        if taken[device.process_index] > rollout:
            kept.append(device)
    return own[:rollout], kept


def local_mesh(devices: Sequence[jax.Device], tensor: int) -> Mesh:
    """The mesh for rollouts over `devices`: data x tensor.

    Raises UserError when `tensor` (engine.tensor) does not divide their number.
    """
    if len(devices) % tensor:
        raise UserError(
            f"engine.tensor is {tensor}, which does not divide the {len(devices)} devices of a process; "
            "choose a divisor"
        )
    shape = (len(devices) // tensor, 1, tensor)
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


class LocalCopy:
    """Gives every process its own copy of parameters that are spread over all of them.

    The copy lies on the process's `local_mesh`: split over `tensor`, whole otherwise, so that a process
    samples without waiting for another. Each call reshards once, over the network where there are several
    processes.

    Args:
        abstract: the parameters' shapes, types and logical axes.
        mesh: the devices that the parameters are spread over.
        local: the mesh of the copy.
        dtype: type of the copy's matrices; norms and biases keep theirs.
    """

    def __init__(self, abstract: nnx.State, mesh: Mesh, local: Mesh, dtype: Any):
        self._local = param_shardings(abstract, local)
        self._everywhere = None
        if mesh.is_multi_process:
            devices = sorted(mesh.devices.flat, key=lambda device: device.process_index)
            tensor = local.shape["tensor"]
            own = [device for device in devices if device.process_index == jax.process_index()]
            self._own = param_shardings(abstract, local_mesh(own, tensor))
            self._everywhere = param_shardings(abstract, local_mesh(devices, tensor))
        self._is_matrix = nnx.map_state(
            lambda _, variable: variable.replace(len({*variable.logical_axes} - {"layers"}) > 1), abstract
        )

        def cast(x, is_matrix):
            return x.astype(dtype) if is_matrix else x

        self._cast = jax.jit(lambda params: jax.tree.map(cast, params, self._is_matrix))
        self._dtype = dtype

    def __call__(self, params: nnx.State) -> nnx.State:
        """The process's copy; what has the right layout and type already is not copied."""

        def right(x, is_matrix):
            return x.dtype == self._dtype or not is_matrix

        if not all(jax.tree.leaves(jax.tree.map(right, params, self._is_matrix))):
            params = self._cast(params)
        if self._everywhere is not None:
            params = jax.tree.map(_own_part, jax.device_put(params, self._everywhere), self._own)
        return jax.device_put(params, self._local)


def _own_part(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """This process's part of `x`, as an array on its own devices."""
    parts = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)


def partition_spec(logical_axes: Sequence[str]) -> PartitionSpec:
    """Mesh axes of a parameter's dimensions.

    Raises ValueError for an axis the table does not know, or two that share a mesh axis: a mistake in the
    model's code, not of the user.
    """
    unknown = [axis for axis in logical_axes if axis not in RULES]
    if unknown:
        raise ValueError(f"logical axes {unknown} have no rule in memocr_jax.core.sharding.RULES")
    spec = [RULES[axis] for axis in logical_axes]
    used = [axis for axis in spec if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(logical_axes)} collide on the mesh: {tuple(spec)}")
    return PartitionSpec(*spec)


def param_shardings(abstract_state: nnx.State, mesh: Mesh) -> nnx.State:
    """The sharding of every parameter, as a state of the same structure with NamedSharding leaves.

    Raises UserError when a dimension does not divide over its mesh axis.
    """

    def sharding(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        spec = partition_spec(variable.logical_axes)
        for size, logical, axis in zip(value.shape, variable.logical_axes, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis} is {mesh.shape[axis]}, which does not divide axis {logical!r} ({size}) of "
                    f"parameter {'.'.join(map(str, path))}; choose a divisor of {size}"
                )
        return variable.replace(NamedSharding(mesh, spec))

    return nnx.map_state(sharding, abstract_state)


def abstract_like(tree: Any, shardings: Any = None) -> Any:
    """The abstract tree of `tree` (arrays or ShapeDtypeStructs), with `shardings` or the arrays' own."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays on the devices of `mesh`, leading axis split (`batch_sharding`).

    With several processes every one passes its own rows, equally many, and the global batch is all of them
    in the order of the mesh.
    """
    sharding = batch_sharding(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)
    with jax.transfer_guard_host_to_device("allow"):  # JAX counts this one as implicit
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def put_scalar(value: float, mesh: Mesh) -> jax.Array:
    """f32[] on every device of `mesh`; all processes pass the same value."""
    copies = [jax.device_put(np.float32(value), device) for device in mesh.local_devices]
    return jax.make_array_from_single_device_arrays((), replicated(mesh), copies)


def own_rows(mesh: Mesh) -> tuple[int, int]:
    """(first, count): which of the mesh's batch shards (`batch_shards`) lie on this process's devices.

    Raises UserError when they are not this process's alone or do not follow each other, as when
    mesh.tensor reaches over processes.
    """
    shards, processes = batch_shards(mesh), mesh.devices.flat
    count = len({device.process_index for device in processes})
    places = batch_sharding(mesh).addressable_devices_indices_map((shards,))
    own = sorted({place[0].indices(shards)[0] for place in places.values()})
    if len(own) * count != shards or own != list(range(own[0], own[0] + len(own))):
        raise UserError(
            f"mesh.tensor is {mesh.shape['tensor']}: a row of a batch would lie on devices of several "
            f"processes; choose a divisor of the {len(mesh.local_devices)} devices of a process"
        )
    return own[0], len(own)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain_batch(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Keep an activation split over its leading axis, where that axis divides; otherwise as it is."""
    if mesh is None or x.shape[0] % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def batch_shards(mesh: Mesh) -> int:
    """Devices over which the leading axis of a batch is split: its length must be a multiple of this."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def cache_sharding(mesh: Mesh, kv_heads: int, *, stacked: bool) -> NamedSharding:
    """Sharding of a decoding cache's keys and values: [rows, kv_heads, ...], after `layers` if `stacked`."""
    heads = RULES["kv_heads"]
    heads = heads if kv_heads % mesh.shape[heads] == 0 else None
    return NamedSharding(mesh, PartitionSpec(*([None] if stacked else []), BATCH, heads))


def tensor_shards(mesh: Mesh) -> int:
    """Devices that share one layer's heads and channels."""
    return mesh.shape["tensor"]


def per_device(function: Any, mesh: Mesh | None, rows: int, kv_heads: int) -> Any:
    """Run `function(q, k, v, segments)` on every device, for its own part of [rows, length, heads, dim]
    arrays.

    For kernels that the compiler cannot split. Rows and heads that do not divide stay whole.
    """
    if mesh is None:
        return function
    batch = BATCH if rows % batch_shards(mesh) == 0 else None
    heads = RULES["kv_heads"] if kv_heads % mesh.shape[RULES["kv_heads"]] == 0 else None
    by_head = PartitionSpec(batch, None, heads, None)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(by_head, by_head, by_head, PartitionSpec(batch, None)),
        out_specs=by_head,
        check_vma=False,
    )
