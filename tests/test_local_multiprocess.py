"""launch/local_multiprocess.sh, really run: processes over loopback that die and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training_runs import ROOT, environment, metrics_of, params_of, write_config
from tests.waiting import LIMIT_S, wait_until

SCRIPT = str(ROOT / "launch" / "local_multiprocess.sh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multiprocess")
    write_config(
        folder / "quick.yaml",
        data={"synthetic": {"chunks": 1}},
        rl={"kl_coef": 0.0},
        engine={"window_multiple": 16, "warm_up": False},
        train={"steps": 3},
        validation={"every_steps": 0},
    )
    # The script starts `PYTHON -m memocr_jax.train ...`: this one gives rewards that random weights can earn.
    python = folder / "python"
    python.write_text(
        f'#!/usr/bin/env bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n'
        f'exec {sys.executable} {ROOT}/tests/train_with_signal.py "${{@:3}}"\n'
    )
    python.chmod(0o755)
    return folder


def launch(folder: Path, name: str, *arguments: str) -> subprocess.Popen:
    """Train with two processes into `folder`/`name`."""
    return subprocess.Popen(
        [
            *("bash", SCRIPT, "2", "--logs", str(folder / f"{name}_logs"), *arguments),
            *("--python", str(folder / "python")),
            *("--config", str(folder / "quick.yaml"), "--run.dir", str(folder / name), "--mesh.fsdp", "2"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_process_is_replaced_and_the_run_ends_as_if_nothing_had_happened(folder):
    whole = launch(folder, "whole")
    output, _ = whole.communicate(timeout=LIMIT_S)
    assert whole.returncode == 0, output
    assert "step    3/3" in output, "process 0 is shown"

    killed = launch(folder, "killed")
    wait_until((folder / "killed" / "checkpoints" / "1").is_dir, killed)
    os.kill(int((folder / "killed_logs" / "process_1.pid").read_text()), signal.SIGKILL)
    output, _ = killed.communicate(timeout=LIMIT_S)
    assert killed.returncode == 0, output
    assert "local_multiprocess: start 1 of 5 ended with status 137" in output

    ours, theirs = metrics_of(folder / "killed"), metrics_of(folder / "whole")
    assert [m["step"] for m in ours] == [1, 2, 3]
    assert any(m["grad/norm"] > 1e-3 for m in theirs), "nothing was learned, so nothing was compared"
    for a, b in zip(params_of(folder / "killed"), params_of(folder / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_mistake_is_not_tried_again(folder):
    process = launch(folder, "mistake", "--rl.group-size", "0")
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2, output
    assert "rl.group_size" in output and "start 1 of" not in output


def test_dry_run_prints_the_commands():
    done = subprocess.run(
        ["bash", SCRIPT, "2", "--dry-run", "--devices", "4", "--config", "configs/tiny.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("JAX_NUM_CPU_DEVICES=4" in line for line in lines)
    assert "--processes.index 1 >" in lines[1] and "--processes.count 2" in lines[1]


@pytest.mark.parametrize("arguments", [[], ["many"], ["0"]])
def test_the_number_of_processes_is_needed(arguments):
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: the first argument is ")
