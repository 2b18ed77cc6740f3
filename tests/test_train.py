"""The main job from the outside: the command, what it leaves, resuming, evaluation, and what goes wrong."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.training_runs import ROOT, environment, metrics_of, params_of, write_config
from tests.waiting import LIMIT_S, wait_until


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory to run commands in; compiled programs are shared between them."""
    folder = tmp_path_factory.mktemp("runs")
    write_config(folder / "quick.yaml")
    return folder, environment()


def command(workplace, module, *arguments, **options):
    folder, variables = workplace
    return subprocess.run(
        [sys.executable, "-m", f"memocr_jax.{module}", *map(str, arguments)],
        cwd=folder,
        env={**variables, **options},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def finished(workplace):
    """A run of three steps without interruption."""
    folder, _ = workplace
    done = command(workplace, "train", "--config", "quick.yaml", "--run.dir", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "whole", done.stdout


def test_what_a_run_leaves_behind(finished):
    run_dir, output = finished
    assert "step    3/3" in output and "reward std" in output and "tokens/s" in output and "left" in output
    assert f"results: {run_dir.name}" in output and "report.html" in output

    from memocr_jax.config import load_config

    assert load_config(run_dir / "config.yaml").rl.group_size == 2
    metrics = metrics_of(run_dir)
    assert [m["step"] for m in metrics] == [1, 2, 3]
    for m in metrics:
        # 2 questions x 2 memories, each read three ways (or the cloze is counted as missing).
        assert m["scored/std"] == m["scored/aug_m"] == 4 - m["render/empty"] - m["render/failed"]
        assert m["scored/aug_q"] == m["scored/std"] - m["gap_fill/missing"]
        assert m["update/updates"] == 1
        assert m["rollout/logp_gap"] < 1e-4
        assert m["view/tokens_aug_m"] < m["view/tokens_std"] <= 64
    assert list(run_dir.glob("events.out.tfevents*"))
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["1", "2", "3"]
    assert "<html" in (run_dir / "report.html").read_text()[:500]


def test_trajectories_hold_every_turn_and_its_pages(finished):
    run_dir, _ = finished
    turns = [
        json.loads(line) for line in (run_dir / "trajectories/step_000001.jsonl").read_text().splitlines()
    ]
    for q in range(2):
        for g in range(2):
            own = [t for t in turns if (t["q"], t["g"]) == (q, g)]
            assert [t["chunk"] for t in own if t["kind"] == "DRAFT"] == list(range(own[0]["n_chunks"]))
            kinds = {t["kind"] for t in own} - {"DRAFT"}
            assert {"QA", "QA_LOWRES"} <= kinds <= {"QA", "QA_LOWRES", "GAP_FILL"}
    reads = [t for t in turns if t["view"]]
    assert reads
    for turn in reads:
        pixels = np.asarray(Image.open(run_dir / "trajectories" / turn["view"]["file"]))
        assert pixels.shape == (turn["view"]["height_px"], turn["view"]["width_px"], 3)
        assert pixels.shape[0] // 28 * (pixels.shape[1] // 28) == turn["view"]["image_tokens"]
        assert pixels.max() > 200 and pixels.min() < (
            250 if turn["kind"] == "QA_LOWRES" else 128
        )  # ink on paper
        assert (run_dir / "trajectories" / turn["page"]).is_file()
        assert turn["prompt"].count("<image>") == 1 and turn["asked"] in turn["prompt"]
    # The first draft sees no memory; the second sees exactly what the first wrote.
    first, second = (next(t for t in turns if t["kind"] == "DRAFT" and t["chunk"] == c) for c in (0, 1))
    assert "(nothing yet)" in first["prompt"]
    assert first["response"].strip() in second["prompt"]


def test_the_same_seed_gives_the_same_metrics(workplace, finished):
    folder, _ = workplace
    # Processes that make the documents change nothing either.
    workers = ("--data.workers", 2)
    again = command(workplace, "train", "--config", "quick.yaml", "--run.dir", "again", *workers)
    assert again.returncode == 0, again.stderr
    assert metrics_of(folder / "again") == metrics_of(finished[0])
    for a, b in zip(params_of(folder / "again"), params_of(finished[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    other = command(
        workplace,
        "train",
        "--config",
        "quick.yaml",
        "--run.dir",
        "other",
        "--run.seed",
        1,
        "--train.steps",
        1,
    )
    assert other.returncode == 0, other.stderr
    assert metrics_of(folder / "other")[0] != metrics_of(finished[0])[0]


def test_a_killed_run_continues_as_if_nothing_had_happened(workplace, finished):
    folder, environment = workplace
    run_dir = folder / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "memocr_jax.train", "--config", "quick.yaml", "--run.dir", "killed"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until((run_dir / "checkpoints/1").is_dir, process)
    process.kill()
    process.wait()
    # An attempt that went further than its checkpoint leaves lines that must not stand twice.
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "reward/std": 1}\n{"step": 10, "rew')
    done = command(workplace, "train", "--config", "quick.yaml", "--run.dir", "killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing killed after step" in done.stdout
    assert metrics_of(run_dir) == metrics_of(finished[0])
    for a, b in zip(params_of(run_dir), params_of(finished[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_trained_again_and_fresh_moves_it_aside(workplace, finished):
    folder, _ = workplace
    shutil.copytree(finished[0], folder / "copy")
    done = command(workplace, "train", "--config", "quick.yaml", "--run.dir", "copy")
    assert done.returncode == 0 and "step    3/3" not in done.stdout and "report" in done.stdout
    assert metrics_of(folder / "copy") == metrics_of(finished[0])
    done = command(
        workplace, "train", "--config", "quick.yaml", "--run.dir", "copy", "--run.fresh", "--train.steps", 1
    )
    assert done.returncode == 0, done.stderr
    assert "what was in copy is now in copy.1" in done.stdout
    assert metrics_of(folder / "copy.1") == metrics_of(finished[0])
    assert [m["step"] for m in metrics_of(folder / "copy")] == [1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits_with_its_own_status(workplace, number, status):
    folder, environment = workplace
    run_dir = folder / f"signal{status}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "memocr_jax.train", "--config", "quick.yaml", "--run.dir", run_dir.name),
            *("--train.steps", "500", "--checkpoint.every-steps", "500"),
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text(), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, output
    assert "the same command continues" in output
    last = metrics_of(run_dir)[-1]["step"]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [str(last)]


def test_evaluate_reads_one_draft_at_every_budget(workplace, finished):
    run_dir, _ = finished
    arguments = ("--config", "quick.yaml", "--checkpoint", run_dir.name)
    done = command(workplace, "evaluate", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (run_dir / "evaluation/results.jsonl").read_text().splitlines()]
    assert len(results) == 3 * 2  # questions x budgets
    for r in results:
        assert r["image_tokens"] is None or 1 <= r["image_tokens"] <= r["budget"]
    pages = {r["id"]: set() for r in results}
    for r in results:
        pages[r["id"]].add(r["page_hash"])
    assert all(len(hashes) == 1 for hashes in pages.values()), "a budget drafted the memory again"
    summary = json.loads((run_dir / "evaluation/summary.json").read_text())
    assert summary["checkpoint"] == 3 and summary["questions"] == 3
    for cell in summary["cells"]:
        rows = [r["em"] for r in results if r["budget"] == cell["budget"]]
        assert cell["em"]["mean"] == sum(rows) / len(rows)
    assert "64" in done.stdout and "Exact match, %" in done.stdout
    # The same command finds everything finished, and gives the same results.
    before = (run_dir / "evaluation/results.jsonl").read_text()
    assert command(workplace, "evaluate", *arguments).returncode == 0
    assert (run_dir / "evaluation/results.jsonl").read_text() == before


def row(**changes):
    return {
        "id": "a",
        "question": "Who?",
        "golden_answers": ["Ann"],
        "metadata": {
            "supporting_facts": {"title": ["T"], "sent_id": [0]},
            "context": {"title": ["T"], "sentences": [["It was Ann."]]},
        },
        **changes,
    }


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        pytest.param(
            None, ["--render.chromium", "/nowhere/chromium"], ["chromium", "/nowhere"], id="no Chromium"
        ),
        pytest.param(
            None,
            ["--data.source", "flashrag", "--data.path", "absent.jsonl"],
            ["data.path", "absent.jsonl"],
            id="no data",
        ),
        pytest.param(
            json.dumps(row()) + "\n" + json.dumps(row(id="b", question=7)),
            ["--data.source", "flashrag", "--data.path", "rows.jsonl"],
            ["rows.jsonl", "2", "question"],
            id="malformed row",
        ),
        pytest.param(
            json.dumps(row()) + "\n{not json",
            ["--data.source", "flashrag", "--data.path", "rows.jsonl"],
            ["rows.jsonl", "2", "JSON"],
            id="not JSON",
        ),
        pytest.param(
            None,
            ["--mesh.fsdp", "4", "--train.micro-batch-rows", "2"],
            ["train.micro_batch_rows", "2", "4"],
            id="rows",
        ),
        pytest.param(None, ["--mesh.fsdp", "2"], ["mesh", "1 devices", "mesh.fsdp"], id="devices"),
        pytest.param(
            None, ["--model.path", "absent"], ["model.path", "absent", "config.json"], id="no model"
        ),
        pytest.param(
            None,
            ["--model.path", str(ROOT / "configs/models/tiny_qwen_vocab")],
            ["tokenizer", "image_token_id"],
            id="vocab",
        ),
        pytest.param(
            None, ["--model.init", "pretrained"], ["model.path", "safetensors", "model.init"], id="no weights"
        ),
        pytest.param(None, ["--run.dir", "quick.yaml"], ["run.dir", "file"], id="run.dir is a file"),
        pytest.param(None, ["--run.dir", "."], ["run.dir", "not a run"], id="run.dir is something else"),
    ],
)
def test_mistakes_are_one_clear_line(workplace, prepare, arguments, words):
    folder, _ = workplace
    if prepare:
        (folder / "rows.jsonl").write_text(prepare)
    done = command(workplace, "train", "--config", "quick.yaml", "--run.dir", "mistake", *arguments)
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(error) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in error[0] for word in words), error[0]


def test_a_checkpoint_of_another_model_is_refused(workplace, finished):
    folder, _ = workplace
    shutil.copytree(finished[0], folder / "mismatch", ignore=shutil.ignore_patterns("evaluation"))
    model = json.loads((ROOT / "configs/models/tiny/config.json").read_text())
    (folder / "wider").mkdir()
    (folder / "wider/config.json").write_text(json.dumps({**model, "intermediate_size": 120}))
    arguments = ("--config", "quick.yaml", "--model.path", "wider")
    for module, more in (("train", ("--run.dir", "mismatch")), ("evaluate", ("--checkpoint", "mismatch"))):
        done = command(workplace, module, *arguments, *more)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "intermediate_size is 112 there and 120" in done.stderr
    assert metrics_of(folder / "mismatch") == metrics_of(finished[0])  # nothing was harmed


def test_on_real_input(workplace, shared_dir):
    folder, _ = workplace
    merged = write_config(folder / "x.yaml")
    tree = yaml.safe_load(merged.read_text())
    real = yaml.safe_load((ROOT / "configs/tiny_hotpotqa.yaml").read_text())
    tree["model"], tree["data"], tree["render"] = real["model"], real["data"], real["render"]
    tree["model"]["path"] = str(ROOT / tree["model"]["path"])
    (folder / "real.yaml").write_text(yaml.safe_dump(tree))
    done = command(
        workplace,
        "train",
        *("--config", "real.yaml", "--train.steps", 1),
        *("--data.path", shared_dir / "data/hotpotqa_train.jsonl"),
        *("--tokenizer.path", shared_dir / "tokenizer/qwen2.5"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = metrics_of(folder / "runs/real")
    assert metrics["document/chunks"] > 1
    assert metrics["scored/std"] == 4 - metrics["render/empty"] - metrics["render/failed"]
    turns = (folder / "runs/real/trajectories/step_000001.jsonl").read_text()
    assert "Document 1:" in turns


def test_overrides_reach_the_configuration_that_is_kept(finished):
    run_dir, _ = finished
    from memocr_jax.config import load_config

    config = load_config(run_dir / "config.yaml")
    assert config.run.dir == "whole"
    assert dataclasses.replace(config.run, dir="x").seed == 0
