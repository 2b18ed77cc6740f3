"""Compiles a program for devices that this machine need not have, and reads its memory and work."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jax

from memocr_jax.plan.chips import Topology
from memocr_jax.plan.cost import program_cost
from memocr_jax.plan.hlo import second_side
from memocr_jax.plan.roofline import Facts, Program
from render.files import write_atomically


def compile_program(program: Program, topology: Topology, cache: Path | None = None) -> Facts:
    """Memory as XLA gives it, and work as read from the compiled program's text (`cost.program_cost`).

    Results are kept in the folder `cache`, by the program's text and the compiler's version. A program that
    XLA refuses for its memory gives `error`, and as temporary bytes the memory that XLA says it needs. When
    XLA cannot give the text of a program, its work is that of the arithmetic.
    """
    lowered = program.lower()
    known = _known(lowered, topology, cache)
    if "error" in known:
        used = max(0.0, known["peak_bytes"] - program.held_bytes)
        return Facts(used, 0.0, 0.0, 0.0, source="compiled", error=known["error"])
    facts = {
        "argument_bytes": known["argument_bytes"],
        "temporary_bytes": known["temporary_bytes"],
        "output_bytes": known["output_bytes"],
        "compile_s": known["compile_s"],
    }
    if "text" not in known:
        return dataclasses.replace(program.estimate(), source="memory compiled", **facts)
    cost = program_cost(known["text"], topology.within, program.pairs)
    facts["temporary_bytes"] += cost.workspace_bytes
    return Facts(
        **facts,
        flops=cost.flops,
        bytes=cost.bytes,
        collectives=cost.collectives,
        source="compiled",
        unknown_loops=cost.unknown_loops,
        second_side=second_side(known["text"]),
    )


def _known(lowered: Any, topology: Topology, cache: Path | None) -> dict[str, Any]:
    """The compiled program's text and memory, from the folder `cache` where it is there."""
    if cache is None:
        return _compile(lowered)
    flags = os.environ.get("LIBTPU_INIT_ARGS", ""), os.environ.get("XLA_FLAGS", "")
    version = " ".join((jax.__version__, jax.lib.__version__, *flags, str(topology)))
    name = hashlib.blake2b((version + lowered.as_text()).encode(), digest_size=16).hexdigest()
    path = cache / f"{name}.json.gz"
    if path.exists():
        return json.loads(gzip.decompress(path.read_bytes()))
    known = _compile(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(json.dumps(known).encode()))
    return known


def _compile(lowered: Any) -> dict[str, Any]:
    """The program's text and memory, or why XLA refuses it."""
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in message and "memory" not in message.lower():
            raise
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", message)
        size = float(used.group(1)) * _UNITS[used.group(2)] if used else 0.0
        return {"error": message[:500], "peak_bytes": size}
    memory = compiled.memory_analysis()
    facts = {
        "compile_s": time.perf_counter() - started,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    # libtpu 0.0.51 cannot write down some programs for v5p: "async-update should have 1 operands".
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        facts["text"] = compiled.as_text()
    return facts


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
