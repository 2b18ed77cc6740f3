"""Rollouts and learning, part by part; one JSON object.

    python -m benchmarks.rl [--parts rollout decode ...] [--repeats 3] [--cores N] [--out FILE]

Both sides of every ratio run in this process, in turns, warm; a ratio above 1 means that the shared prefix,
or this package, is faster.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from memocr_jax.core.errors import UserError

PARTS = {
    "rollout": ("benchmarks.rl_rollout", "rollout_results", "shared against unshared prefix, sampling"),
    "train": (
        "benchmarks.rl_train",
        "training_results",
        "the same in training; a step against PyTorch",
    ),
    "decode": ("benchmarks.rl_rollout", "decode_results", "decoding against transformers' generate"),
    "logp": (
        "benchmarks.rl_rollout",
        "logp_results",
        "the sampler's log-probabilities and the trainer's",
    ),
    "stages": ("benchmarks.rl_stages", "stage_results", "seconds of each stage of a whole step"),
    "growth": ("benchmarks.rl_growth", "growth_results", "a whole step with more of everything"),
}
"""Part -> module, function of the parsed arguments, what it is."""


def merge(into: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Add nested results; parts share the upper levels (`shared_prefix.train`, `shared_prefix.rollout`)."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        elif key in into:
            raise ValueError(f"two parts of the benchmark write {key!r}")
        else:
            into[key] = value
    return into


def run(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """The results of one part; only its own imports are paid for."""
    module, function, _ = PARTS[part]
    return getattr(importlib.import_module(module), function)(args)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rl",
        description=__doc__.split("\n")[0],
        epilog="; ".join(f"{name}: {what}" for name, (_, _, what) in PARTS.items()),
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=0, help="processor cores for both sides (default: all)")
    parser.add_argument("--out", metavar="FILE", help="write the JSON there too")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats is {args.repeats}: the smallest that works is 1")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "torch is not installed; install the dev extra: pip install memocr_jax[dev]"
        ) from None
    from benchmarks.timing import machine, use_cores

    if args.cores:
        use_cores(args.cores)
    results: dict[str, Any] = {
        "what": "ratios above 1: the shared prefix, or memocr_jax, is faster",
        "command": " ".join(["python -m benchmarks.rl", *argv]),
        "machine": machine(),
        "seconds": {},
    }
    for part in args.parts:
        print(f"{part}: {PARTS[part][2]} ...", file=sys.stderr, flush=True)
        started = time.perf_counter()
        merge(results, run(part, args))
        results["seconds"][part] = round(time.perf_counter() - started, 1)
    text = json.dumps(results, indent=2)
    print(text, flush=True)
    if args.out:
        Path(args.out).write_text(text + "\n", encoding="utf-8")
