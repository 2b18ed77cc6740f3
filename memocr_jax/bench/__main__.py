"""`python -m memocr_jax.bench model [options]`: every benchmark is a module here with a `main(argv)`."""

from __future__ import annotations

import importlib
import sys

from memocr_jax.errors import UserError, nearest, run_command

BENCHMARKS = {
    "evaluate": "memocr_jax.bench.evaluate",
    "model": "memocr_jax.bench.model",
    "rl": "memocr_jax.bench.rl",
    "rl_train": "memocr_jax.bench.rl_train",
}


def main() -> None:
    name, *argv = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print(f"usage: python -m memocr_jax.bench {{{','.join(BENCHMARKS)}}} [options]")
        return
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is not known{nearest(name, list(BENCHMARKS))}")
    importlib.import_module(BENCHMARKS[name]).main(argv)


if __name__ == "__main__":
    run_command(main)
