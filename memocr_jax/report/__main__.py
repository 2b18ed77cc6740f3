"""`python -m memocr_jax.report RUN_DIR`: write the report of a run again, also while it is running."""

from __future__ import annotations

import argparse
from pathlib import Path

from memocr_jax.core.errors import run_command
from memocr_jax.report import write_report


def main() -> None:
    """Parse the command line and write the report."""
    parser = argparse.ArgumentParser(prog="python -m memocr_jax.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run directory, as memocr_jax.train leaves it")
    print(write_report(parser.parse_args().run_dir))


if __name__ == "__main__":
    run_command(main)
