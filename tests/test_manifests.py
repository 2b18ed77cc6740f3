"""Manifests for Kubernetes and SkyPilot, against the schemas of those who read them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from prometheus_client.parser import text_string_to_metric_families

from memocr_jax.config import parse_command
from memocr_jax.core.signals import PREEMPTED
from tests.waiting import LIMIT_S

REPOSITORY = Path(__file__).parents[1]
COMMON = ("--image", "registry.example/memocr:1", "--config", "configs/tiny.yaml")
TRAIN = (*COMMON, "--run.dir", 'gs://mine/a|b "c"')


def manifests(*arguments: str) -> list[dict[str, Any]]:
    done = gke(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def gke(*arguments: str) -> subprocess.CompletedProcess:
    script = str(REPOSITORY / "launch" / "gke.sh")
    return subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=LIMIT_S)


def validate(document: dict[str, Any]) -> None:
    """Against Kubernetes' own schemas, strictly; a JobSet against its models and, within, a Job's schema."""
    if document["kind"] == "JobSet":
        shell = copy.deepcopy(document)
        for job in shell["spec"]["replicatedJobs"]:
            template, job["template"] = job["template"], {"spec": {"template": {}}}
            validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, **template})
        # The models drop what they do not know.
        assert JobsetV1alpha2JobSet.from_dict(shell).to_dict() == shell, "fields that a JobSet does not have"
    elif not document["apiVersion"].startswith("monitoring.googleapis.com/"):
        kubernetes_validate.validate(document, "1.31", strict=True)


def pod_of(jobset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Job's spec, pod's spec) of a JobSet of one replicated job."""
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


def test_a_tpu_slice():
    (jobset,) = manifests("tpu", "--topology", "v5e:16x16", "--model", "Qwen/Q-7B", *TRAIN)
    validate(jobset)
    job, pod = pod_of(jobset)
    assert job["completions"] == job["parallelism"] == 64 and job["backoffLimit"] == 0
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    config, _ = parse_command(container["args"], "train", "")
    assert config.processes.launcher == "gke_tpu" and config.run.dir == 'gs://mine/a|b "c"'
    (model,) = pod["initContainers"]
    assert model["command"] == ["hf", "download", "Qwen/Q-7B", "--local-dir", "models/Q-7B"]
    (jobset,) = manifests("tpu", "--topology", "v5p:2x4x4", "--spot", *TRAIN)
    job, pod = pod_of(jobset)
    assert job["completions"] == 8 and "initContainers" not in pod
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_nodes_with_gpus():
    (jobset,) = manifests("gpu", "--nodes", "8", "--name", "mine", *TRAIN)
    validate(jobset)
    job, pod = pod_of(jobset)
    assert job["completions"] == 8 and job["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    # Kubernetes puts the pod's number where $(PROCESS) stands.
    (variable,) = container["env"]
    assert variable["name"] == "PROCESS" and "job-completion-index" in str(variable["valueFrom"])
    arguments = [word.replace("$(PROCESS)", "7") for word in container["args"]]
    processes = parse_command(arguments, "train", "")[0].processes
    # A pod's address is JOBSET-JOB-REPLICA-POD.JOBSET.
    assert (processes.count, processes.index) == (8, 7)
    assert processes.coordinator == "mine-trainer-0-0.mine:8476"


@pytest.mark.parametrize("kind", [("tpu", "--topology", "v6e:8x8"), ("gpu",)])
def test_what_ends_a_jobset_and_what_starts_it_again(kind):
    (jobset,) = manifests(*kind, *TRAIN)
    job, pod = pod_of(jobset)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (
        rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    )
    # A mistake of the user's (2) fails the Job for that reason, and so the JobSet; all else, 75 too, starts
    # all pods again, and no pod alone.
    assert rule["onExitCodes"]["values"] == [2] and PREEMPTED not in rule["onExitCodes"]["values"]
    (policy,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (policy["action"], policy["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 20
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    shm = next(v for v in pod["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory", "Chromium's"


def test_the_schemas_notice_mistakes():
    (good,) = manifests("gpu", *TRAIN)
    changes = [
        lambda d: d["spec"].update(failurePolicies={}),
        lambda d: d["spec"]["failurePolicy"].update(maxRestarts="many"),
        lambda d: pod_of(d)[0].update(parallelism="two"),
        lambda d: pod_of(d)[0].update(backofLimit=1),
        lambda d: pod_of(d)[1]["containers"][0].update(argz=[]),
    ]
    for change in changes:
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
            validate(bad)


def test_renderers_that_scale_with_their_queue():
    from fastapi.testclient import TestClient

    from render.server import create_app
    from render.settings import RenderSettings

    documents = {d["kind"]: d for d in manifests("render", "--image", "a/b:1", "--replicas", "9")}
    for document in documents.values():
        validate(document)
    deployment, scaler = documents["Deployment"], documents["HorizontalPodAutoscaler"]
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    label, port = pod["metadata"]["labels"], container["ports"][0]
    assert documents["Service"]["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == label
    assert documents["PodMonitoring"]["spec"]["selector"]["matchLabels"] == label
    (endpoint,) = documents["PodMonitoring"]["spec"]["endpoints"]
    assert endpoint["port"] == port["name"] and str(port["containerPort"]) in container["command"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaler["spec"]["maxReplicas"] == 9

    # The metric is one that the server has, of the kind that the manifest says, and paths answer.
    (metric,) = scaler["spec"]["metrics"]
    origin, name, kind = metric["pods"]["metric"]["name"].split("|")
    assert origin == "prometheus.googleapis.com"
    with TestClient(create_app(RenderSettings(workers=1))) as client:
        assert client.get(container["readinessProbe"]["httpGet"]["path"]).status_code == 200
        families = {f.name: f for f in text_string_to_metric_families(client.get(endpoint["path"]).text)}
    assert families[name].type == kind
    assert [(s.labels, s.value) for s in families[name].samples] == [({}, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("pods",), "the first argument is 'pods'"),
        (("tpu", "--topology", "v5e:8x8", "--config", "a.yaml"), "--image is missing"),
        (("tpu", "--topology", "h100:8x8", *TRAIN), "--topology is 'h100:8x8'"),
        (("gpu", "--image", "a"), "--config is missing"),
        (("gpu", "--nodes", "some", *TRAIN), "--nodes is 'some'"),
        (("render", *COMMON), "--config: render takes no arguments"),
    ],
)
def test_what_is_wrong_is_said(arguments, error):
    done = gke(*arguments)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {error}") and done.stderr.count("\n") == 1


SKY = REPOSITORY / "launch" / "skypilot.yaml"


def test_the_skypilot_task_starts_the_trainer_on_every_node():
    task = yaml.safe_load(SKY.read_text())
    assert task["setup"].splitlines()[0].split() == ["bash", "launch/setup_env.sh", "cuda", "gcs", "s3"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [PREEMPTED]
    environment = {
        **{**task["envs"], "RUN": "gs://mine/runs/a", "ARGUMENTS": "--train.steps 3"},
        **{"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
        "PATH": "/usr/bin:/bin",
    }
    shown = task["run"].replace(".venv/bin/python -m memocr_jax.train", "printf '%s\\n'")
    output = subprocess.run(
        ["bash", "-c", shown], env=environment, capture_output=True, text=True, check=True
    )
    config, _ = parse_command(output.stdout.split(), "train", "")
    assert (config.run.dir, config.train.steps) == ("gs://mine/runs/a", 3)
    assert (config.processes.coordinator, config.processes.index) == ("10.0.0.1:8476", 1)


def test_skypilots_own_parser_reads_the_task(tmp_path):
    python = REPOSITORY / ".venv" / "sky" / "bin" / "python"  # made by launch/test.sh
    if not python.with_name("sky").exists():  # nor when its installation was cut short
        pytest.skip("SkyPilot is not installed; launch/test.sh does that")
    code = (
        "import json, sky, sys, yaml\n"
        "task = sky.Task.from_yaml_config(yaml.safe_load(sys.stdin), env_overrides=[('RUN', 's3://mine/a')])\n"
        "kinds = [[*r.accelerators, r.use_spot] for r in task.resources]\n"
        "print(json.dumps([task.num_nodes, task.envs['RUN'], kinds]))\n"
    )

    def parsed(text: str) -> subprocess.CompletedProcess[str]:
        # SkyPilot keeps files in the home.
        environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        return subprocess.run(
            [str(python), "-c", code],
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    done = parsed(SKY.read_text())
    assert done.returncode == 0, done.stderr
    nodes, run, kinds = json.loads(done.stdout.splitlines()[-1])
    assert (nodes, run) == (1, "s3://mine/a")
    assert {kind for kind, _ in kinds} == {"H100", "H200", "A100-80GB"} and all(spot for _, spot in kinds)
    wrong = parsed(SKY.read_text() + "\nno_such_field: 1\n")
    assert wrong.returncode != 0 and "no_such_field" in wrong.stderr
