"""The story of a run: `python -m memocr_jax.story --config configs/nano.yaml [--run.seed 1 ...]`.

Trains, asks the start and the trained model the same held-out questions, and shows both in the run's
`report.html`. The same command continues after an interruption.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from memocr_jax.config import Config, parse_command
from memocr_jax.core.errors import run_command
from memocr_jax.report.story import BEFORE


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    about = "Train, and read held-out questions before and after."
    config, _ = parse_command(argv, "python -m memocr_jax.story", about)
    return tell(config)


def tell(config: Config) -> int:
    """Train as `config` describes, then evaluate both ends; returns the exit status of the training.

    Raises UserError as `train` and `evaluate` do.
    """
    from memocr_jax.evaluate import evaluate
    from memocr_jax.report import write_report
    from memocr_jax.runs.compiled import free_programs
    from memocr_jax.train import train

    if status := train(config):
        return status
    run_dir = Path(config.run.dir)
    free_programs()
    print("held-out questions, before training:")
    evaluate(config, to=run_dir / BEFORE)
    free_programs()
    print("the same questions, after training:")
    evaluate(config, str(run_dir))
    print(f"before and after: {write_report(run_dir)}")
    return 0


if __name__ == "__main__":
    run_command(main)
