"""Benchmarks of rollouts and learning, part by part; prints one JSON object.

    python -m benchmarks.rl [--parts rollout decode ...] [--repeats 3] [--cores N] [--out FILE]

Both sides of every ratio run in this process, in turns, warm; a ratio above 1 means that the shared prefix,
or this package, is faster.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from memocr_jax.core.errors import UserError, run_command
from render.bounds import NonNegativeInt, PositiveInt
from render.options import parse_options

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


@dataclasses.dataclass(frozen=True)
class Options:
    parts: tuple[Literal["rollout", "train", "decode", "logp", "stages", "growth"], ...] = tuple(PARTS)
    repeats: PositiveInt = 3
    cores: NonNegativeInt = 0
    """Processor cores for both sides; 0 for all."""
    out: str = ""
    """File to write the JSON to, too."""


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


def run(part: str, args: Options) -> dict[str, Any]:
    """The results of one part; only its own imports are paid for."""
    module, function, _ = PARTS[part]
    return getattr(importlib.import_module(module), function)(args)


def main(argv: Sequence[str] | None = None) -> None:
    about = (
        __doc__.split("\n")[0]
        + " Parts: "
        + "; ".join(f"{name}: {what}" for name, (_, _, what) in PARTS.items())
    )
    args = parse_options(Options, argv, "python -m benchmarks.rl", description=about)
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
        "command": " ".join(["python -m benchmarks.rl", *(sys.argv[1:] if argv is None else argv)]),
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


if __name__ == "__main__":
    run_command(main)
