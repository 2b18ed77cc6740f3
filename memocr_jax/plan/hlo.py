"""What a compiled program does, read from its text: operations, bytes to and from memory, collectives.

XLA's own cost analysis counts the body of a loop once, whatever its number of turns; a model is a loop over
layers. So the text of the optimised program is walked here, bodies multiplied by their turns.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

BYTES = {
    "pred": 1,
    "token": 0,
    "opaque": 0,
    "s4": 0.5,
    "u4": 0.5,
    "s2": 0.25,
    "u2": 0.25,
    "c64": 8,
    "c128": 16,
}
"""Bytes of the element types whose name does not end with their bits."""

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
    *("copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
}
"""Instructions that move nothing themselves."""


SLICES = ("dynamic-slice", "gather", "slice")
"""Instructions that read a part of their first operand."""

UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that write a part of their first operand in place -> number of the operand with that part."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and group size that a program does in one run, on one device."""

    kind: str
    devices: int
    """That take part in each."""
    count: float
    bytes: float
    """Of the whole (gathered, reduced) values together."""
    across: bool = False
    """Over the network between nodes or slices, not the links within."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in one run of a program."""

    flops: float
    """Of matrix products and convolutions; a product and a sum are two."""
    bytes: float
    """Read from and written to device memory, by every instruction that is not fused into another."""
    collectives: tuple[Collective, ...]
    unknown_loops: int
    """Loops whose number of turns is not in the text; counted as one turn."""


@dataclasses.dataclass(frozen=True)
class _Shape:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    """In a TPU's scratch memory (layout `S(1)` and others), not in HBM."""

    @property
    def bytes(self) -> float:
        return _element_bytes(self.dtype) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: tuple[_Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    """The text between the operation's brackets (a constant's value)."""

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes if not shape.on_chip)

    def called(self, *names: str) -> list[str]:
        """Computations that the named attributes (`body`, `calls` ...) point to."""
        found: list[str] = []
        for name in names:
            match = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            found += re.findall(r"%([\w.\-]+)", match.group(1)) if match else []
        return found


@dataclasses.dataclass
class _Total:
    flops: float = 0.0
    bytes: float = 0.0
    unknown: int = 0
    collectives: dict[tuple[str, int, str], tuple[float, float]] = dataclasses.field(default_factory=dict)
    """(kind, devices, channel) -> (count, bytes)"""

    def add(self, other: _Total, times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.unknown += other.unknown
        for key, (count, size) in other.collectives.items():
            # Fusions of computation and communication hold copies of one collective: same channel.
            self.collectives[key] = (times * count, times * size)


def second_side(text: str) -> int:
    """The largest n such that some array of a program has two sides of n or more.

    With attention's scores whole, [heads, length, length], it would be at least the length of a row.
    """
    sides = (sorted(map(int, found.split(","))) for found in set(re.findall(r"\w\[(\d+(?:,\d+)+)\]", text)))
    return max((each[-2] for each in sides), default=0)


def program_cost(text: str) -> Cost:
    """Cost of one run on one device, from `compiled.as_text()`.

    Of a conditional's branches the one with the most operations counts. A kernel written by hand (a custom
    call) counts with the estimate that it carries, if it carries one.
    """
    module = _Module(text)
    total = module.cost(module.entry)
    merged: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for (kind, devices, _), (count, size) in total.collectives.items():
        merged[kind, devices][0] += count
        merged[kind, devices][1] += size
    return Cost(
        total.flops,
        total.bytes,
        tuple(Collective(*key, *values) for key, values in sorted(merged.items())),
        total.unknown,
    )


class _Module:
    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        self._costs: dict[tuple[str, bool], _Total] = {}
        self._reads: dict[str, dict[int, float]] = {}
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and " -> " in line and not line.startswith(" "):
                name = re.match(r"(?:ENTRY\s+)?%?([\w.\-]+)", line).group(1)
                current = self.computations.setdefault(name, {})
                if line.startswith("ENTRY"):
                    self.entry = name
            elif line.startswith("  ") and " = " in line:
                instruction = _parse(line)
                if instruction is not None:
                    current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("no ENTRY computation: this is not the text of a compiled program")

    def cost(self, name: str, fused: bool = False) -> _Total:
        """Cost of one run of a computation; inside a fusion only the fusion touches memory."""
        if (name, fused) not in self._costs:
            total = self._costs[name, fused] = _Total()
            for instruction in self.computations[name].values():
                self._add(total, name, instruction, fused)
        return self._costs[name, fused]

    def _add(self, total: _Total, computation: str, i: _Instruction, fused: bool) -> None:
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
            total.flops += self._dot_flops(computation, i)
        elif i.opcode == "convolution":
            total.flops += self._convolution_flops(computation, i)
        elif i.opcode == "custom-call":
            total.flops += _estimate(i, "flops")
        elif kind in COLLECTIVES:
            devices = _group_size(i.attributes)
            size = max(s.bytes for s in (*i.shapes, *self._operand_shapes(computation, i)))
            if kind == "all-reduce":  # several arrays at once
                size = sum(s.bytes for s in self._operand_shapes(computation, i))
            channel = re.search(r"channel_id=(\d+)", i.attributes)
            key = kind, devices, f"{computation} {i.name}" if channel is None else channel.group(1)
            total.collectives[key] = (1.0, size)
        if not fused and i.opcode not in FREE:
            total.bytes += i.bytes + self._read_bytes(computation, i)

    def _operand_shapes(self, computation: str, i: _Instruction) -> list[_Shape]:
        known = self.computations[computation]
        return [shape for name in i.operands if name in known for shape in known[name].shapes]

    def _read_bytes(self, computation: str, i: _Instruction) -> float:
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
            users: dict[str, list[_Instruction]] = collections.defaultdict(list)
            for instruction in inner.values():
                for name in set(instruction.operands):
                    users[name].append(instruction)
            self._reads[computation] = {
                int(i.arguments): self._reads_of(i.name, users)
                for i in inner.values()
                if i.opcode == "parameter"
            }
        return self._reads[computation]

    def _reads_of(self, name: str, users: dict[str, list[_Instruction]]) -> float:
        total = 0.0
        for user in users[name]:
            first = user.operands[0] == name
            if user.opcode in SLICES and first:
                total += _element_bytes(user.shapes[0].dtype) * math.prod(user.shapes[0].dims)
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

    def _dot_flops(self, computation: str, i: _Instruction) -> float:
        left = self.computations[computation][i.operands[0]].shapes[0].dims
        contracted = _numbers(i.attributes, "lhs_contracting_dims")
        return 2.0 * math.prod(i.shapes[0].dims) * math.prod(left[d] for d in contracted)

    def _convolution_flops(self, computation: str, i: _Instruction) -> float:
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

    def _turns(self, i: _Instruction, condition: str) -> int | None:
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

    def _with_fusions(self, name: str) -> Iterator[_Instruction]:
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


def _parse(line: str) -> _Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"[\w\-]+", rest)
    if opcode is None:
        return None
    start = opcode.end()
    close = _closing(rest, start)
    arguments = rest[start + 1 : close]
    return _Instruction(
        match.group(1),
        tuple(_shapes(shapes)),
        opcode.group(),
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        rest[close + 1 :],
        arguments,
    )


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"brackets do not close: {text[start:][:80]}")


def _shapes(text: str) -> Iterator[_Shape]:
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text):
        sizes = tuple(int(d) for d in dims.split(",") if d)
        yield _Shape(dtype, sizes, re.search(r"S\([1-9]", layout) is not None)


def _element_bytes(dtype: str) -> float:
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits.group(1)) / 8 if bits else 0.0


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(rf"\b{name}=\{{([\d,]*)\}}", attributes)
    return [int(n) for n in found.group(1).split(",") if n] if found else []


def _estimate(i: _Instruction, name: str) -> float:
    found = re.search(rf'cost_estimate\W+.*?"?{name}"?\s*:\s*"?(\d+)', i.attributes)
    return float(found.group(1)) if found else 0.0


def _group_size(attributes: str) -> int:
    """Devices in each group of a collective."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh.group(2)))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    return 2 if "source_target_pairs" in attributes else 1
