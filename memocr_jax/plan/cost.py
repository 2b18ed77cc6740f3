"""Counts the work of one run of a compiled program: operations, bytes to and from memory, collectives.

XLA's own cost analysis counts the body of a loop once, whatever its number of turns, and a model is a loop
over layers; and it knows nothing of a GPU that this machine lacks. So the text of the optimised program is
walked here, bodies multiplied by their turns, and calls of kernels and libraries counted by their shapes.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from memocr_jax.plan.hlo import Instruction, element_bytes, read_program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"),
    *("while", "conditional", "call", "async-start", "async-update", "async-done", "opt-barrier"),
    *("copy-done", "send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES)),
}
"""Instructions that move nothing themselves."""

SLICES = ("dynamic-slice", "gather", "slice")
"""Instructions that read a part of their first operand."""

UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that write a part of their first operand in place -> number of the operand with that part."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and group that a program does in one run, on one device."""

    kind: str
    devices: int
    """Devices that take part in each."""
    count: float
    bytes: float
    """Bytes of the whole (gathered, reduced) values together."""
    nodes: int = 1
    """Nodes of a group's devices; with more than 1 the collective goes over the network."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one device in one run of a program."""

    flops: float
    """Operations of matrix products, convolutions and attention kernels; a multiplication and an addition are
    two."""
    bytes: float
    """Read from and written to device memory, by every instruction that is not fused into another."""
    collectives: tuple[Collective, ...]
    unknown_loops: int
    """Loops whose number of turns is not in the text; counted as one turn."""
    workspace_bytes: float
    """The most that a library's call takes beside the memory XLA knows of (cuDNN's backward)."""


@dataclasses.dataclass
class _Total:
    flops: float = 0.0
    bytes: float = 0.0
    unknown: int = 0
    workspace: float = 0.0
    collectives: dict[tuple[str, int, int, str], tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )
    """(kind, devices, nodes, channel) -> (count, bytes)"""

    def add(self, other: _Total, times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.unknown += other.unknown
        self.workspace = max(self.workspace, other.workspace)
        for key, (count, size) in other.collectives.items():
            # Fusions of computation and communication hold copies of one collective: same channel.
            self.collectives[key] = (times * count, times * size)


def program_cost(text: str, within: int = 0, pairs: float = 0.0) -> Cost:
    """Cost of one run on one device, from `compiled.as_text()`.

    Of a conditional's branches the one with the most operations counts.

    Args:
        within: devices of a node, numbered one after the other; 0 means that all are on one.
        pairs: (query, key) pairs of a row under the mask of splash attention, which the text does not show.
    """
    module = _Module(text, within, pairs)
    total = module.cost(module.entry)
    merged: dict[tuple[str, int, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for (*key, _), (count, size) in total.collectives.items():
        merged[tuple(key)][0] += count
        merged[tuple(key)][1] += size
    found = [
        Collective(kind, devices, *sums, nodes) for (kind, devices, nodes), sums in sorted(merged.items())
    ]
    return Cost(total.flops, total.bytes, tuple(found), total.unknown, total.workspace)


class _Module:
    def __init__(self, text: str, within: int, pairs: float):
        self.computations, self.entry = read_program(text)
        self.within, self.pairs = within, pairs
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(partitions.group(1)) if partitions else 1
        self._costs: dict[tuple[str, bool], _Total] = {}
        self._reads: dict[str, dict[int, float]] = {}

    def cost(self, name: str, fused: bool = False) -> _Total:
        """Cost of one run of a computation; inside a fusion only the fusion touches memory."""
        if (name, fused) not in self._costs:
            total = self._costs[name, fused] = _Total()
            for instruction in self.computations[name].values():
                self._add(total, name, instruction, fused)
        return self._costs[name, fused]

    def _add(self, total: _Total, computation: str, i: Instruction, fused: bool) -> None:
        kind = i.opcode.removesuffix("-start")
        if i.opcode == "while":
            body, condition = i.called("body")[0], i.called("condition")[0]
            turns = self._turns(i, condition)
            total.unknown += turns is None
            total.add(self.cost(body), turns or 1)
        elif i.opcode == "conditional":
            names = i.called("branch_computations") or i.called("true_computation", "false_computation")
            total.add(max((self.cost(n) for n in names), key=lambda c: c.flops))
        elif i.opcode in ("call", "async-start"):
            for called in i.called("to_apply", "calls"):
                total.add(self.cost(called, fused))
        elif i.opcode == "fusion":
            total.add(self.cost(i.called("calls")[0], True))
        elif i.opcode == "dot":
            total.flops += self._dot_flops(computation, i, i.numbers("lhs_contracting_dims"))
        elif i.opcode == "convolution":
            total.flops += self._convolution_flops(computation, i)
        elif i.opcode == "custom-call":
            flops, workspace = self._call(computation, i)
            total.flops += flops
            total.workspace = max(total.workspace, workspace)
        elif kind in COLLECTIVES:
            devices, nodes = self._group(i)
            size = sum(shape.bytes for shape in self._operand_shapes(computation, i))
            size *= devices if kind == "all-gather" else 1
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            name = f"{computation} {i.name}" if channel is None else channel.group(1)
            total.collectives[kind, devices, nodes, name] = (1.0, size)
        if not fused and i.opcode not in FREE:
            total.bytes += i.bytes + self._read_bytes(computation, i)

    def _group(self, i: Instruction) -> tuple[int, int]:
        """Devices of each group of a collective, and nodes that the widest group is on."""
        groups = i.replica_groups()
        if groups is None:
            groups = np.arange(self.devices)[None]
        nodes = max(len(set(row)) for row in (groups // self.within if self.within else groups * 0).tolist())
        return groups.shape[1], nodes

    def _operand_shapes(self, computation: str, i: Instruction) -> list:
        known = self.computations[computation]
        return [shape for name in i.operands if name in known for shape in known[name].shapes]

    def _read_bytes(self, computation: str, i: Instruction) -> float:
        """What an instruction reads, and (negative) what of its result it does not write: of an operand that
        is only sliced, the slices; of a result that takes an operand's place, the part that changes."""
        known = self.computations[computation]
        if i.opcode in SLICES:
            return i.bytes
        if i.opcode in UPDATES:
            update = known.get(i.operands[UPDATES[i.opcode]])
            return 2 * update.bytes - i.bytes if update else 0.0
        inside = i.called("calls")[0] if i.opcode == "fusion" else None
        sliced = self._parameter_reads(inside) if inside else {}
        total = 0.0
        for number, name in enumerate(i.operands):
            if name in known:
                total += min(sliced.get(number, math.inf), known[name].bytes)
        return total - min(i.bytes, self._kept(inside)) if inside else total

    def _parameter_reads(self, computation: str) -> dict[int, float]:
        """Bytes that a fused computation reads of each parameter, infinite where it reads all of it."""
        if computation not in self._reads:
            inner = self.computations[computation]
            users: dict[str, list[Instruction]] = collections.defaultdict(list)
            for instruction in inner.values():
                for name in set(instruction.operands):
                    users[name].append(instruction)
            self._reads[computation] = {
                int(i.arguments): self._reads_of(i.name, users)
                for i in inner.values()
                if i.opcode == "parameter"
            }
        return self._reads[computation]

    def _reads_of(self, name: str, users: dict[str, list[Instruction]]) -> float:
        total = 0.0
        for user in users[name]:
            first = user.operands[0] == name
            if user.opcode in SLICES and first:
                total += element_bytes(user.shapes[0].dtype) * math.prod(user.shapes[0].dims)
            elif user.opcode in UPDATES and first:
                continue
            elif user.opcode == "bitcast":
                total += self._reads_of(user.name, users)
            elif user.opcode == "fusion":
                inner = self._parameter_reads(user.called("calls")[0])
                total += sum(inner[k] for k, operand in enumerate(user.operands) if operand == name)
            else:
                return math.inf
        return total

    def _kept(self, computation: str) -> float:
        """Bytes of a fusion's result that an update in place leaves as they were."""
        inner = self.computations[computation]
        total = 0.0
        for i in inner.values():
            if i.opcode in UPDATES:
                update = inner.get(i.operands[UPDATES[i.opcode]])
                total += max(0.0, i.bytes - (update.bytes if update else 0.0))
            elif i.opcode == "fusion":
                total += self._kept(i.called("calls")[0])
        return total

    def _dot_flops(self, computation: str, i: Instruction, contracted: list[int]) -> float:
        left = self.computations[computation][i.operands[0]].shapes[0].dims
        return 2.0 * math.prod(i.shapes[0].dims) * math.prod(left[d] for d in contracted)

    def _call(self, computation: str, i: Instruction) -> tuple[float, float]:
        """(operations, bytes of a workspace that XLA does not know of) of a kernel or a library's call."""
        if i.target.startswith("__cublas$"):
            numbers = i.settings().get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
            contracted = [int(n) for n in numbers.get("lhs_contracting_dimensions", ())]
            return self._dot_flops(computation, i, contracted), 0.0
        if i.target.startswith("__cudnn$fmha"):
            settings = i.settings()["cudnn_fmha_backend_config"]
            batch, heads, queries, keys = map(int, settings["intermediate_tensor_shape"]["dimensions"])
            dim = i.shapes[0].dims[-1]
            # A product for the scores and one for the values; backward five, the scores computed again.
            backward = i.target.endswith("Backward")
            flops = (10.0 if backward else 4.0) * batch * heads * queries * keys * dim
            flops *= 0.5 if "CAUSAL" in settings["mask_type"] else 1.0
            # Backward sums dQ in float32 and keeps dK and dV of every query head, and a sum of each row.
            workspace = batch * heads * (queries * (4 * dim + 4) + keys * 4 * dim) if backward else 0.0
            return flops, workspace
        splash = re.match(r"splash_m\w+?_(fwd|dkv|dq)_", i.name)
        if i.target == "tpu_custom_call" and splash:
            *rows, _, dim = self.computations[computation][i.operands[2]].shapes[0].dims
            products = {"fwd": 2, "dkv": 4, "dq": 3}[splash.group(1)]
            return 2.0 * products * math.prod(rows) * self.pairs * dim, 0.0
        estimate = re.search(r'cost_estimate\W+.*?"?flops"?\s*:\s*"?(\d+)', i.attributes)
        return float(estimate.group(1)) if estimate else 0.0, 0.0

    def _convolution_flops(self, computation: str, i: Instruction) -> float:
        """As XLA counts it: TPUs see products as convolutions, a batch axis as a window that is mostly out of
        bounds. Only positions within bounds count."""
        known = self.computations[computation]
        left, kernel = (known[name].shapes[0].dims for name in i.operands[:2])
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
        lhs, rhs, out = labels.groups()
        result = i.shapes[0].dims
        inputs = kernel[rhs.index("i")] if "i" in rhs else 1
        valid = 1.0
        window = re.search(r"window=\{([^}]*)\}", i.attributes)
        fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
        for position, label in enumerate(sorted(c for c in rhs if c.isdigit())):
            sizes = left[lhs.index(label)], kernel[rhs.index(label)], result[out.index(label)]
            valid *= _valid_positions(fields, position, *sizes)
        batch = result[out.index("b")] if "b" in out else 1
        features = result[out.index("f")] if "f" in out else 1
        groups = re.search(r"batch_group_count=(\d+)", i.attributes)
        return 2.0 * inputs * batch * features * valid / (int(groups.group(1)) if groups else 1)

    def _turns(self, i: Instruction, condition: str) -> int | None:
        known = re.search(r"known_trip_count\W+n\W+(\d+)", i.attributes)
        if known:
            return int(known.group(1))
        constants = [
            int(c.arguments)
            for c in self._with_fusions(condition)
            if c.opcode == "constant" and c.shapes[0].dtype in ("s32", "u32") and not c.shapes[0].dims
        ]
        # jax.lax.scan and fori_loop count from 0 to a constant.
        return max(constants, default=0) or None

    def _with_fusions(self, name: str) -> Iterator[Instruction]:
        for instruction in self.computations[name].values():
            yield instruction
            for called in instruction.called("calls", "to_apply"):
                yield from self._with_fusions(called)


def _valid_positions(fields: dict[str, str], axis: int, size: int, kernel: int, result: int) -> int:
    """(output, kernel) index pairs along one axis that fall on an element of the input."""
    if kernel == 1 and not fields:
        return result

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    stride, before = int(field("stride", "1")), int(field("pad", "0_0").split("_")[0])
    input_dilation, kernel_dilation = int(field("lhs_dilate", "1")), int(field("rhs_dilate", "1"))
    at = np.arange(result)[:, None] * stride + np.arange(kernel)[None] * kernel_dilation - before
    inside = (at >= 0) & (at <= (size - 1) * input_dilation) & (at % input_dilation == 0)
    return int(inside.sum())
