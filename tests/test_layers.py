"""Rooms import downward only (pyproject.toml), and what must start quickly loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_rooms_import_downward_only():
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(linter, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["memocr_jax.config", "render", "memocr_jax"])
def test_what_must_be_quick_to_import_loads_nothing_heavy(module):
    heavy = {"jax", "flax", "playwright", "transformers", "PIL"}
    code = f"import sys, {module}; print(*({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], (
        f"{module} imports something heavy: configuration errors would come late"
    )
