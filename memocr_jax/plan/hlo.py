"""Reads the text of a compiled program (`compiled.as_text()`) as instructions."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

BYTES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25}
BYTES |= {"c64": 8, "c128": 16}
"""Bytes of the element types whose name does not end with their bits."""


@dataclasses.dataclass(frozen=True)
class HloShape:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool
    """In a TPU's scratch memory (layout `S(1)` and others), not in HBM."""

    @property
    def bytes(self) -> float:
        return element_bytes(self.dtype) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[HloShape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    """The text between the operation's brackets (a constant's value)."""

    @property
    def bytes(self) -> float:
        """Bytes of its result in HBM. A library's workspace is no result, though it is listed with them."""
        shapes = self.shapes
        if self.opcode == "custom-call" and len(shapes) > 1 and shapes[-1].dtype in ("s8", "u8"):
            shapes = shapes[:-1]
        return sum(shape.bytes for shape in shapes if not shape.on_chip)

    @property
    def target(self) -> str:
        """The target of a custom call; empty for other instructions."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def called(self, *names: str) -> list[str]:
        """Computations that the named attributes (`body`, `calls` ...) point to."""
        found: list[str] = []
        for name in names:
            match = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            found += re.findall(r"%([\w.\-]+)", match.group(1)) if match else []
        return found

    def numbers(self, name: str) -> list[int]:
        """The integers of an attribute such as `lhs_contracting_dims={1}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(n) for n in found.group(1).split(",") if n] if found else []

    def settings(self) -> dict[str, Any]:
        """The backend's configuration of a call to a library, where it is JSON."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]
        except ValueError:
            return {}

    def replica_groups(self) -> np.ndarray | None:
        """i64[groups, devices of each] of a collective; None where all devices are one group."""
        text = self.attributes
        if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
            return np.array(re.findall(r"(\d+),(\d+)", pairs.group(1)), np.int64)
        if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
            groups = [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed.group(1))]
            return np.array([group for group in groups if len(group) == len(groups[0])])
        if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
            return _iota(iota.group(3)).reshape(int(iota.group(1)), int(iota.group(2)))
        named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", text)
        return None if named is None else _mesh_groups(*named.groups())


def read_program(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """(computations, name of the entry): the instructions of each computation by name. Raises ValueError."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            name = re.match(r"(?:ENTRY\s+)?%?([\w.\-]+)", line).group(1)
            current = computations.setdefault(name, {})
            if line.startswith("ENTRY"):
                entry = name
        elif line.startswith("  ") and " = " in line:
            instruction = _parse(line)
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    return computations, entry


def second_side(text: str) -> int:
    """The largest n such that some array of a program has two sides of n or more.

    With attention's scores whole, [heads, length, length], it would be at least the length of a row.
    """
    sides = (sorted(map(int, found.split(","))) for found in set(re.findall(r"\w\[(\d+(?:,\d+)+)\]", text)))
    return max((each[-2] for each in sides), default=0)


def element_bytes(dtype: str) -> float:
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits.group(1)) / 8 if bits else 0.0


def _parse(line: str) -> Instruction | None:
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
    return Instruction(
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


def _shapes(text: str) -> Iterator[HloShape]:
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text):
        sizes = tuple(int(d) for d in dims.split(",") if d)
        yield HloShape(dtype, sizes, re.search(r"S\([1-9]", layout) is not None)


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: the numbers 0 to 7 laid out 2 x 4, transposed, in a row."""
    dims, _, order = text.partition("T")
    sides = [int(n) for n in dims.strip("[]").split(",")]
    ids = np.arange(math.prod(sides)).reshape(sides)
    return ids.transpose([int(n) for n in order.strip("()").split(",")] if order else None).ravel()


def _mesh_groups(mesh: str, ids: str | None, names: str) -> np.ndarray:
    """Groups of a mesh with named axes, `'a'=2,'b'=4`, along some of them: `'b'`, or `'b':(2)2`, the part
    of size 2 of an axis whose outer parts have 2."""
    axes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)]
    wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", names)
    sides: list[int] = []
    chosen: list[int] = []
    for axis, size in axes:
        parts = sorted((int(before or 1), int(part or size)) for name, before, part in wanted if name == axis)
        done = 1
        for before, part in parts:
            if before > done:
                sides.append(before // done)
            chosen.append(len(sides))
            sides.append(part)
            done = before * part
        sides.append(size // done)
    count = math.prod(sides)
    if ids is None:
        devices = np.arange(count)
    else:
        devices = _iota(ids) if "[" in ids else np.array([int(n) for n in re.findall(r"\d+", ids)])
    rest = [axis for axis in range(len(sides)) if axis not in chosen]
    size = math.prod(sides[axis] for axis in chosen)
    return devices.reshape(sides).transpose([*rest, *chosen]).reshape(-1, size)
