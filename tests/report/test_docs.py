"""docs/run_directory.md names the metrics that the code writes, and no others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WRITERS = (
    "memocr_jax/rl/step_metrics.py",
    "memocr_jax/rl/update.py",
    "memocr_jax/evaluation/validation.py",
    "memocr_jax/train.py",
)
NAME = re.compile(r"[a-z_]+/[a-zA-Z_]+")


def written() -> set[str]:
    """Names in the sources; a part that is filled in per objective reads OBJ, stages come from timers."""
    names = set()
    for path in WRITERS:
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "OBJ" for p in node.values]
                names.add("".join(parts).replace("accuracy_OBJ", "accuracy_BUDGET"))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    # The pieces of f-strings come by themselves too, and end in the middle of a name.
    return {name for name in names if NAME.fullmatch(name) and not name.endswith(("_", "/"))}


def timers() -> set[str]:
    """Stages that a training step times; that of waiting for pages has a name of its own."""
    package = REPOSITORY / "memocr_jax"
    sources = [*package.glob("rl/*.py"), package / "agent/agent.py", package / "evaluation/validation.py"]
    stages = {
        stage for path in sources for stage in re.findall(r"stopwatch\(\"(\w+)\"\)", path.read_text("utf-8"))
    }
    return {f"time/{stage}_s" for stage in stages - {"render_exposed"}}


def documented() -> set[str]:
    text = (REPOSITORY / "docs" / "run_directory.md").read_text("utf-8")
    table = text[text.index("## metrics.jsonl") : text.index("## trajectories")]
    cells = (line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_metrics_are_documented():
    code = (written() - {"time/OBJ_s"}) | timers()
    assert len(code) > 25, "the names in the sources were not found"
    assert code - documented() == set(), "metrics that docs/run_directory.md does not explain"
    assert documented() - code == set(), "metrics that docs/run_directory.md explains and nothing writes"
