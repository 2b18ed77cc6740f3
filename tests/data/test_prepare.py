import dataclasses
import hashlib
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from memocr_jax.config.data import DataConfig
from memocr_jax.core.errors import UserError
from memocr_jax.data.__main__ import parse_length
from memocr_jax.data.loader import load_examples
from memocr_jax.data.prepare import Job, prepare
from memocr_jax.data.prepared import PreparedQuestions
from memocr_jax.models.tokenizer import load_tokenizer


@pytest.fixture
def job(rows, write, tmp_path):
    return Job("toy", write(rows), "", document_tokens=700, licence="CC0", to=str(tmp_path / "out"))


def digest(folder):
    """Every file of a folder with the hash of its contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_prepared_is_what_the_loader_assembles(job, rows):
    seen = []
    manifest = prepare(job, lambda done, total: seen.append((done, total)))
    # 40 questions in shards of 16: reports at 0, 16, 32 and 40.
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]
    assert manifest["questions"] == 40 and manifest["left_out"] == 0 and manifest["licence"] == "CC0"
    questions = PreparedQuestions(job.to)
    assert [q.example_id for q in questions] == [row["id"] for row in rows]
    assert questions[-1] == questions[39]
    with pytest.raises(IndexError):
        questions[40]
    direct = DataConfig(source="flashrag", path=job.questions, document_tokens=700, validation_questions=8)
    stored = DataConfig(source="prepared", path=job.to, validation_questions=8)
    tokenizer = load_tokenizer()
    for split in ("train", "validation"):
        pairs = zip(
            load_examples(direct, tokenizer, split), load_examples(stored, tokenizer, split), strict=True
        )
        for one, other in pairs:
            assert dataclasses.replace(one, chunks=()) == dataclasses.replace(other, chunks=())
            assert np.concatenate(one.chunks).tolist() == np.concatenate(other.chunks).tolist()


def test_the_manifest_tells_lengths_places_and_hashes(job, tmp_path):
    manifest = prepare(job)
    lengths = [len(load_tokenizer().encode(q.context)) for q in PreparedQuestions(job.to)]
    assert manifest["document_tokens"] == {
        "least": min(lengths),
        "mean": round(sum(lengths) / 40, 1),
        "most": max(lengths),
    }
    assert sum(manifest["gold_places_by_tenth"]) == 40, "one gold passage a question in this data"
    for name, sha256 in manifest["shards"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha256
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def test_tfds_reads_the_folder_without_tensorflow(job):
    prepare(job)
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"builder = tfds.builder_from_directory({job.to!r})\n"
        "source = builder.as_data_source(split='validation')\n"
        "assert 'tensorflow' not in sys.modules\n"
        "licence = builder.info.redistribution_info.license\n"
        "print(len(source), builder.info.name, source[3]['example_id'].decode(), licence)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["40", "memocr_toy", "row-3", "CC0"]


def test_bytes_do_not_depend_on_process_or_workers(job, tmp_path):
    prepare(job)
    again = dataclasses.replace(job, to=str(tmp_path / "again"), workers=2)
    prepare(again)
    assert digest(tmp_path / "out") == digest(tmp_path / "again")


def test_killed_at_random_times_it_ends_with_the_same_bytes(rows, write, tmp_path):
    rng = random.Random(0)
    many = [{**row, "id": f"{row['id']}-{copy}"} for copy in range(12) for row in rows]
    file = write(many)
    command = [sys.executable, "-m", "memocr_jax.data", "prepare", "--name", "toy", "--licence", "CC0"]
    command += ["--questions", file, "--length", "3k"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--to", str(whole)], check=True, capture_output=True)
    interruptions = 0
    for _ in range(3):
        process = subprocess.Popen([*command, "--to", str(killed)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        before = len(list((killed / "reports").glob("*.json")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((killed / "reports").glob("*.json"))) >= before + 3:
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        interruptions += process.wait() == -signal.SIGKILL
    assert interruptions >= 2, "the job must be long enough to be interrupted"
    result = subprocess.run([*command, "--to", str(killed)], check=True, capture_output=True, text=True)
    assert "480 questions, 0 left out" in result.stdout
    assert digest(killed) == digest(whole)


def test_a_second_call_does_nothing(job, tmp_path):
    first = prepare(job)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert prepare(job) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_another_job_is_left_alone(job, tmp_path):
    prepare(job)
    with pytest.raises(UserError, match=r"^--to: .* other settings, sources or rules \(see its job\.json\)"):
        prepare(dataclasses.replace(job, seed=1))
    # Documents that were assembled by other rules are not mixed with new ones either.
    path = tmp_path / "out" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rules": 1}))
    with pytest.raises(UserError, match=r"^--to: .* other settings, sources or rules"):
        prepare(job)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"^--to: .*other' is not empty \(thesis\.tex\); name a new folder"):
        prepare(dataclasses.replace(job, to=str(other)))


def test_lenient_by_default_and_strict_when_asked(rows, write, job, tmp_path):
    bad = write([*rows, b"{", {**rows[0], "id": "new", "golden_answers": "x"}, rows[5]], "bad.jsonl")
    manifest = prepare(dataclasses.replace(job, questions=bad))
    assert manifest["questions"] == 40 and manifest["left_out"] == 3
    assert [problem.split("bad.jsonl:")[1].split(":")[0] for problem in manifest["problems"]] == [
        "41",
        "42",
        "43",
    ]
    # Whoever reads the folder is told too: an evaluation's table counts them.
    stored = DataConfig(source="prepared", validation_path=job.to)
    assert list(load_examples(stored, load_tokenizer(), "validation").problems) == manifest["problems"]
    with pytest.raises(UserError, match=r"bad\.jsonl:41: line: not JSON"):
        prepare(dataclasses.replace(job, questions=bad, strict=True, to=str(tmp_path / "strict")))


def test_questions_that_cannot_reach_the_length(job, tmp_path):
    long = dataclasses.replace(job, document_tokens=10**6, to=str(tmp_path / "long"))
    with pytest.raises(UserError, match=r"no document could be made \(first problem: .* cannot be reached"):
        prepare(long)
    with pytest.raises(UserError, match=r"^data\.document_tokens: 1000000 cannot be reached"):
        prepare(dataclasses.replace(long, strict=True, to=str(tmp_path / "longer")))


def test_a_number_of_passages(job):
    manifest = prepare(dataclasses.replace(job, document_tokens=0, document_passages=9))
    documents = [question.context for question in PreparedQuestions(job.to)]
    assert all(document.count("Document ") == 9 for document in documents)
    assert manifest["settings"]["document_passages"] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "hotpot", "licence": ""},
            r"^--name: 'hotpot' is not in the catalogue \(did you mean 'hotpotqa'\?\)",
        ),
        ({"name": "My Data"}, r"^--name: 'My Data' must be made of small letters"),
        ({"split": "a/b"}, r"^--split: 'a/b' must be"),
        ({"to": ""}, r"^--to: empty"),
        ({"limit": -1}, r"^--limit: -1 is negative"),
        ({"workers": 0}, r"^--workers: 0 is too small"),
        ({"questions": "none.jsonl"}, r"^--questions: 'none\.jsonl' does not exist"),
        ({"pool": "none.jsonl"}, r"^--pool: 'none\.jsonl' does not exist"),
        ({"tokenizer": "none"}, r"^tokenizer\.path: no tokenizer\.json in 'none'"),
    ],
)
def test_wrong_jobs_are_refused(job, change, message):
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(job, **change))


@pytest.mark.parametrize(("text", "tokens"), [("10k", 10_000), ("1M", 10**6), ("4096", 4096), ("1.5k", 1500)])
def test_lengths(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-5", "10kk", "0", "0.5", "ten"])
def test_wrong_lengths(text):
    with pytest.raises(UserError, match="write 10k, 30k, 100k, 1m or 4096"):
        parse_length(text)


def test_the_command_line_reports_errors_in_one_line(tmp_path):
    command = [sys.executable, "-m", "memocr_jax.data", "prepare", "--to", str(tmp_path / "x")]
    for arguments, message in [
        (["--name", "nq"], "error: --questions: needed for 'nq'"),
        (["--name", "hotpotqa", "--questions", "none"], "error: --questions: 'none' does not exist"),
        (["--name", "hotpotqa", "--length", "ten"], "error: --length: 'ten' is not a number"),
    ]:
        result = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert result.returncode == 2 and result.stderr.startswith(message), result.stderr
        assert result.stderr.count("\n") == 1


def test_unfinished_folders_say_so(job, tmp_path):
    with pytest.raises(UserError, match=r"^data\.path: .* holds no prepared data; run python -m"):
        PreparedQuestions(str(tmp_path))
    prepare(job)
    manifest = tmp_path / "out" / "manifest.json"
    for damaged, message in (("", "line: not JSON"), ('{"problems": [1]}', r"problems\[0\]: an integer")):
        manifest.write_text(damaged)
        with pytest.raises(UserError, match=rf"^data\.path: .*/manifest\.json: {message}"):
            PreparedQuestions(job.to)
    manifest.unlink()
    with pytest.raises(UserError, match="is unfinished"):
        PreparedQuestions(job.to)
