"""Runs of the main job in processes of their own, for tests: configurations, commands, and what they left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]
WITH_SIGNAL = (str(ROOT / "tests" / "train_with_signal.py"),)
TRAIN = ("-m", "memocr_jax.train")

# Small enough for a test, and otherwise the main job: 2 questions x 2 memories over 2 chunks.
QUICK = {
    "data": {
        "synthetic": {"questions": 8, "facts": 3, "distractors": 2, "filler": 0, "chunks": 2},
        "chunk_tokens": 96,
    },
    "agent": {"draft_max_new_tokens": 24, "read_max_new_tokens": 8},
    "rl": {"group_size": 2, "questions_per_step": 2, "minibatch_questions": 2},
    "train": {"steps": 3, "micro_batch_rows": 2, "length_multiple": 512},
    "engine": {"groups": 8, "length_multiple": 512},
    "checkpoint": {"every_steps": 1, "keep": 5},
    "validation": {"every_steps": 0},
    "eval": {"budgets": [64, 4], "questions": 3},
}


def write_config(path: Path, **changes) -> Path:
    """The main job, made quick, with `changes` (nested sections) in it."""
    tree = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())
    tree["model"]["path"] = str(ROOT / "configs/models/tiny")
    for part in (QUICK, changes):
        _merge(tree, part)
    path.write_text(yaml.safe_dump(tree))
    return path


def _merge(tree: dict, changes: dict) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a command; all tests share compiled programs (tests/conftest.py)."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "COLUMNS": "200",
    }


def start(folder: Path, what: tuple[str, ...], *arguments, devices: int = 1) -> subprocess.Popen:
    """Start `what` (TRAIN, WITH_SIGNAL) in `folder`; its output goes to the pipe `stdout`."""
    return subprocess.Popen(
        [sys.executable, *what, *map(str, arguments)],
        cwd=folder,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a process and return its output; the test fails when it ends with another status."""
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, output
    return output


def process_flags(count: int) -> list[tuple]:
    """For each of `count` processes, the options that join them over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ("--processes.launcher", "flags", "--processes.coordinator", f"127.0.0.1:{port}")
    return [(*common, "--processes.count", count, "--processes.index", i) for i in range(count)]


def params_of(run_dir: Path) -> list[np.ndarray]:
    """Every parameter of a run's newest checkpoint."""
    import jax

    from memocr_jax.config import MeshConfig
    from memocr_jax.core.sharding import abstract_like, make_mesh, param_shardings
    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.models.qwen25_vl import abstract_model
    from memocr_jax.runs.checkpoint import open_checkpoint

    with open_checkpoint(run_dir) as (checkpoints, step):
        _, abstract = abstract_model(Qwen25VLConfig.from_dict(checkpoints.meta(step).model))
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        target = abstract_like(abstract, param_shardings(abstract, mesh))
        return [np.asarray(x) for x in jax.tree.leaves(checkpoints.restore(step, params=target)["params"])]


def metrics_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
