"""Which room may import which: downward only, read from the sources' syntax trees (so lazy imports count)."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# (layer, room, its modules). A module may import from its own room and from rooms of lower layers. The first
# pattern that fits decides; whatever fits none is a command line, which may import anything and which only
# other command lines may import.
ROOMS = [
    (0, "render", ("render", "render.*")),
    (1, "base", ("errors", "types", "rng", "metrics", "buckets", "answers", "prompts")),
    # Settings are a part of the configuration, kept beside the code that they set.
    (1, "base", ("data.settings", "data.vocabulary")),
    (2, "config", ("config", "config.*", "sharding", "sampling", "processes", "run_place")),
    # Inside packages: commands, tools that build what is shipped, and the comparison with PyTorch.
    (
        7,
        "commands",
        (
            "data.__main__",
            "data.build_tokenizer",
            "data.build_nano_tokenizer",
            "report.__main__",
            "bench.*",
            "plan",
            "plan.*",
            "models.check",
        ),
    ),
    (3, "models", ("models", "models.*", "images")),
    (3, "text", ("tokenizer",)),
    (4, "data", ("data", "data.*")),
    # The checkpoint holds the learner's state, optimiser included, so it sits beside rl.
    (5, "engine", ("engine", "engine.*", "rows", "rl", "rl.*", "checkpoint")),
    (5, "report", ("report", "report.*")),
    (5.5, "sft", ("sft", "sft.*")),
    # Answers by every method, and what is made of them; training validates with it.
    (6, "evaluation", ("evaluation", "evaluation.*", "analysis", "analysis.*")),
]
COMMANDS = (7, "commands")

# Lower rooms, and packages from outside, that a room must do without all the same.
FORBIDDEN = {
    "render": ("jax", "flax", "optax", "orbax", "transformers", "torch"),
    "base": ("jax", "flax", "playwright", "transformers", "torch", "PIL"),
    "config": ("playwright", "transformers", "torch", "PIL"),
    "models": ("render", "transformers", "tokenizers", "torch", "playwright"),
    "text": ("render", "jax", "flax", "torch"),
    "data": ("render", "models", "jax", "flax", "torch"),
    "engine": ("data", "playwright", "transformers", "torch"),
    "evaluation": ("data", "playwright", "transformers", "torch"),
    "sft": ("playwright", "transformers", "torch"),
    "report": ("render", "models", "text", "data", "flax", "torch", "playwright"),
    "commands": (),  # benchmarks compare with PyTorch
}
# `render` is used by name here and there below: its errors and settings are part of ours, and the report
# shrinks a page as every reader does.
ALLOWED = {
    ("base", "render.errors"),
    ("config", "render.settings"),
    ("config", "render.errors"),
    ("report", "render.views"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for package in ("memocr_jax", "render")
    for path in sorted((REPOSITORY / package).rglob("*.py"))
}


def room_of(module: str) -> tuple[int, str]:
    short = module.removeprefix("memocr_jax.")
    for layer, room, patterns in ROOMS:
        if any(fnmatchcase(short, pattern) for pattern in patterns):
            return layer, room
    return COMMANDS


def imports_of(source: str) -> list[tuple[int, str]]:
    """(line, module or package) of every import, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append((node.lineno, whole if whole in SOURCES else base))
    return found


def violations(module: str, source: str) -> list[str]:
    layer, room = room_of(module)
    wrong = []
    for line, target in imports_of(source):
        where = f"{module}:{line} ({room}) imports {target}"
        if target.startswith("."):
            wrong.append(f"{where}: spell the import out")
            continue
        package = target.partition(".")[0]
        if package not in ("memocr_jax", "render"):
            if package in FORBIDDEN[room]:
                wrong.append(f"{where}: {room} does without {package}")
            continue
        their_layer, their_room = room_of(target)
        if their_room == room or (room, target) in ALLOWED:
            continue
        if their_layer >= layer:
            wrong.append(f"{where} ({their_room}): imports go downward only")
        elif their_room in FORBIDDEN[room]:
            wrong.append(f"{where}: {room} does without {their_room}")
    return wrong


def test_imports_go_downward():
    wrong = [line for name, path in SOURCES.items() for line in violations(name, path.read_text("utf-8"))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("render.pool", "import memocr_jax.types", "imports go downward only"),
        ("render.pool", "def f():\n    import jax.numpy", "render does without jax"),
        ("memocr_jax.models.text", "from memocr_jax.rl.loss import k3", "imports go downward only"),
        ("memocr_jax.models.text", "from memocr_jax import tokenizer", "imports go downward only"),
        ("memocr_jax.models.text", "from render import RenderPool", "models does without render"),
        ("memocr_jax.config", "from memocr_jax.train import train", "imports go downward only"),
        (
            "memocr_jax.rl.step",
            "from memocr_jax.data.loader import load_examples",
            "engine does without data",
        ),
        ("memocr_jax.rl.step", "from . import loss", "spell the import out"),
        ("memocr_jax.rl.step", "import memocr_jax.new_command_line", "imports go downward only"),
        ("memocr_jax.rl.step", "from memocr_jax.models.text import x\nimport numpy, jax, render.views", None),
        ("memocr_jax.train", "from memocr_jax.rl import step\nfrom memocr_jax import report", None),
    ],
)
def test_the_check_itself(module, source, complaint):
    found = violations(module, source)
    assert [line.rpartition(": ")[2] for line in found] == ([complaint] if complaint else [])


def test_every_room_has_modules():
    rooms = {room_of(module)[1] for module in SOURCES}
    assert rooms == set(FORBIDDEN), "a room of the table is empty, or was renamed"


@pytest.mark.parametrize("module", ["memocr_jax.config", "render", "memocr_jax"])
def test_what_must_be_quick_to_import_loads_nothing_heavy(module):
    heavy = {"jax", "flax", "playwright", "transformers", "PIL"}
    code = f"import sys, {module}; print(*({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], (
        f"{module} imports something heavy: configuration errors would come late"
    )
