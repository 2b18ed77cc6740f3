"""The story of a run: what `bash launch/local.sh` does after the set-up, with two steps instead of 350."""

import json
import subprocess
import sys

import pytest

from tests.training_runs import ROOT, environment
from tests.waiting import LIMIT_S


def story(run_dir, *arguments):
    command = [sys.executable, "-m", "memocr_jax.story", "--config", "configs/nano.yaml"]
    command += ["--run.dir", str(run_dir), "--eval.questions", "48", "--validation.every-steps", "0"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("story") / "nano"
    done = story(run_dir, "--train.steps", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(run_dir / "report.html") in done.stdout.replace("\n", "")
    return run_dir


def accuracy(run_dir, name):
    summary = json.loads((run_dir / name / "summary.json").read_text())
    return {cell["budget"]: cell["em"]["mean"] for cell in summary["cells"]}


def test_the_report_shows_the_same_questions_before_and_after(run_dir):
    html = (run_dir / "report.html").read_text()
    section = html[html.index('<section id="story">') : html.index('<section id="curves">')]
    assert "of 48 held-out questions" in section and section.count("<img ") == 16
    assert "Right answers by budget" in section and "at 2 tokens:" in section
    assert "Gold evidence in the heading" in section


def test_the_shipped_checkpoint_reads_whole_pages_and_not_small_ones(run_dir):
    before = accuracy(run_dir, "evaluation_before")
    # By the card .94, .21 and .21 of all questions: a heading is the asked fact's in one of five memories.
    assert before[32] > 0.8 and before[8] < 0.45 and before[2] < 0.45


def test_the_same_command_goes_on_where_it_was(run_dir):
    before = {name: accuracy(run_dir, name) for name in ("evaluation_before", "evaluation")}
    done = story(run_dir, "--train.steps", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 2
    assert "48 of 48 questions are finished" in done.stdout
    assert {name: accuracy(run_dir, name) for name in before} == before


def test_a_mistake_is_one_line_before_anything_runs(tmp_path):
    done = story(tmp_path / "run", "--train.steps", "-1")
    assert done.returncode == 2 and "train.steps" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
