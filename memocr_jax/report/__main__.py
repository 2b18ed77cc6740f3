"""`python -m memocr_jax.report RUN_DIR`: write the report of a run again, also while it is running."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from memocr_jax.core.errors import run_command
from memocr_jax.report import write_report
from render.options import parse_options


@dataclasses.dataclass(frozen=True)
class Options:
    """Write the report of a run again, also while it is running."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory, as memocr_jax.train leaves it."""


def main() -> None:
    """Write the report that the command line asks for."""
    print(write_report(parse_options(Options, None, "python -m memocr_jax.report").run_dir))


if __name__ == "__main__":
    run_command(main)
