"""Several processes over loopback: the same training, and errors that reach all of them."""

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from memocr_jax.config import ProcessesConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.processes import code_version, gather, joined, require_same, together
from tests.training_runs import (
    TRAIN,
    WITH_SIGNAL,
    finish,
    metrics_of,
    params_of,
    process_flags,
    start,
    write_config,
)
from tests.waiting import LIMIT_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    write_config(
        folder / "quick.yaml",
        # What is compared must not be rounding blown up by Adam: see tests/rl/test_step.py.
        optimizer={"eps": 1e-3},
        # Few programs: compiling is what this test costs.
        data={"synthetic": {"chunks": 1}},
        rl={"kl_coef": 0.0},
        engine={"window_multiple": 16},
        validation={"every_steps": 2, "questions": 2, "samples": 2, "budgets": [64]},
    )
    return folder


def run_two(folder, *arguments, what=WITH_SIGNAL, status=0):
    processes = [
        start(folder, what, "--config", "quick.yaml", *arguments, *flags, devices=2)
        for flags in process_flags(2)
    ]
    return [finish(process, status) for process in processes]


def test_two_processes_of_two_devices_train_as_one_device_does(folder):
    finish(start(folder, WITH_SIGNAL, "--config", "quick.yaml", "--run.dir", "one"))
    outputs = run_two(folder, "--run.dir", "two", "--mesh.fsdp", 2, "--mesh.tensor", 2)
    assert "step    3/3" in outputs[0] and "step    3/3" not in outputs[1]
    one, two = metrics_of(folder / "one"), metrics_of(folder / "two")
    assert any(m["grad/norm"] > 1e-3 for m in one), "nothing was learned, so nothing was compared"
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if value is None:
                assert theirs[name] is None, name
            else:
                assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    for a, b in zip(params_of(folder / "one"), params_of(folder / "two"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


def test_processes_that_are_not_alike_all_stop(folder):
    seeds = [3, 4]
    processes = [
        start(folder, TRAIN, "--config", "quick.yaml", "--run.dir", "x", "--run.seed", seed, *flags)
        for seed, flags in zip(seeds, process_flags(2), strict=True)
    ]
    for process in processes:
        output = finish(process, status=2)
        assert "error: mesh" in output or "processes disagree on the configuration" in output, output


def test_alone_there_is_nothing_to_agree_on():
    assert gather({"a": [1]}) == [{"a": [1]}]
    require_same(anything=1)
    assert together(lambda: 3) == 3

    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        together(fail)
    with joined(ProcessesConfig()):
        assert len(code_version()) == 16


def test_an_environment_that_is_not_there_is_an_error_of_the_setting():
    with (
        pytest.raises(UserError, match=r"processes.launcher is 'slurm'"),
        joined(dataclasses.replace(ProcessesConfig(), launcher="slurm")),
    ):
        pass


@pytest.mark.parametrize(("tasks", "visible"), [("1(x2)", "all"), ("2", "1")])
def test_a_task_alone_on_its_node_has_all_gpus(tasks, visible):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # A job of one task, as srun would describe it; JAX's own answer to SLURM_LOCALID 1 is "GPU 1 only".
    variables = {
        **dict.fromkeys(("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"), "1"),
        **{
            "SLURM_JOB_ID": "7",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "127.0.0.1",
        },
        **{"SLURM_STEP_TASKS_PER_NODE": tasks, "JAX_COORDINATOR_PORT": port},
    }
    code = (
        "import jax\nfrom memocr_jax.config import ProcessesConfig\n"
        "from memocr_jax.core.processes import joined\n"
        "with joined(ProcessesConfig(launcher='slurm')):\n"
        "    print('visible', jax.config.values['jax_cuda_visible_devices'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert f"visible {visible}\n" in done.stdout


def as_launched(launcher, task, tasks=2):
    """The environment that srun or mpirun gives to one of the tasks of a job on this machine."""
    if launcher == "mpi":
        names = {
            "OMPI_COMM_WORLD_SIZE": tasks,
            "OMPI_COMM_WORLD_RANK": task,
            "OMPI_COMM_WORLD_LOCAL_RANK": task,
        }
        return {**names, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911"}
    names = {"SLURM_NTASKS": tasks, "SLURM_PROCID": task, "SLURM_LOCALID": task, "SLURM_STEP_NUM_NODES": 1}
    return {**names, "SLURM_JOB_ID": 7, "SLURM_STEP_NODELIST": "127.0.0.1"}


@pytest.mark.parametrize("launcher", ["slurm", "mpi"])
def test_two_tasks_join_by_what_their_launcher_says(launcher):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import jax\nfrom memocr_jax.config import ProcessesConfig\n"
        "from memocr_jax.core.processes import gather, joined\n"
        f"with joined(ProcessesConfig(launcher={launcher!r})):\n"
        "    print('all', gather(jax.process_index()), 'devices', jax.device_count())\n"
    )
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": "1",
                "JAX_COORDINATOR_PORT": str(port),
                **{name: str(value) for name, value in as_launched(launcher, task).items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in range(2)
    ]
    for task in tasks:
        output, _ = task.communicate(timeout=LIMIT_S)
        assert task.returncode == 0 and "all [0, 1] devices 2" in output, output
