"""The command from the outside: killed at random and run again, it leaves what it would have left at once."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.waiting import LIMIT_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["visual memory", "visual without layout", "text memory", "raw history"]
QUESTIONS, SETS, BUDGETS = 4, 2, (16, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory to run commands in; compiled programs are shared between them."""
    folder = tmp_path_factory.mktemp("evaluations")
    tree = yaml.safe_load((ROOT / "configs/tiny_eval.yaml").read_text())
    tree["model"]["path"] = str(ROOT / "configs/models/tiny")
    tree["agent"] = {"draft_max_new_tokens": 16, "read_max_new_tokens": 6}
    tree["engine"] = {"groups": 4, "length_multiple": 512, "window_multiple": 16, "decode_segment": 8}
    rows = [json.dumps(row(i)) for i in range(QUESTIONS)]
    (folder / "dev.jsonl").write_text("\n".join([rows[0], '{"id": "x"}', *rows[1:], "{not json"]) + "\n")
    world = {"facts": 3, "distractors": 1, "filler": 0, "chunks": 2, "hops_max": 1}
    tree["eval"] = {
        "methods": METHODS,
        "budgets": list(BUDGETS),
        "questions": QUESTIONS,
        "raw_max_tokens": 300,
        "wave_questions": 1,
        "bootstrap": 100,
        "sets": [
            {"name": "world", "length": "short", "data": {"synthetic": world}},
            {
                "name": "questions",
                "length": "short",
                "data": {"source": "flashrag", "validation_path": "dev.jsonl", "strict": False},
            },
        ],
    }
    (folder / "eval.yaml").write_text(yaml.safe_dump(tree))
    return folder, {**os.environ, "COLUMNS": "160"}


def row(i: int) -> dict:
    return {
        "id": f"row-{i}",
        "question": f"Who is number {i}?",
        "golden_answers": [f"Ann {i}"],
        "metadata": {
            "supporting_facts": {"title": ["T"], "sent_id": [0]},
            "context": {"title": ["T"], "sentences": [[f"It was Ann {i}, number {i}."]]},
        },
    }


def start(place, to, *arguments):
    folder, environment = place
    command = [sys.executable, "-m", "memocr_jax.evaluate", "--config", "eval.yaml", "--to", to]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output


@pytest.fixture(scope="module")
def whole(place):
    """An evaluation without interruption."""
    status, output = finish(start(place, "whole"))
    assert status == 0, output
    return place[0] / "whole", output


def test_what_an_evaluation_leaves(whole):
    directory, output = whole
    lines = (directory / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    assert len(results) == SETS * QUESTIONS * (3 * len(BUDGETS) + 1)
    from memocr_jax.evaluation.methods import KEYS

    assert all(tuple(result) == KEYS for result in results)
    pages = {(r["id"], r["method"]): set() for r in results if r["page_hash"]}
    for r in results:
        if r["page_hash"]:
            pages[r["id"], r["method"]].add(r["page_hash"])
    assert all(len(hashes) == 1 for hashes in pages.values()), "a budget drafted the memory again"
    by_id = [pages[r["id"], "visual memory"] != pages[r["id"], "visual without layout"] for r in results]
    assert any(by_id), "layout made no difference to any page"
    summary = json.loads((directory / "summary.json").read_text())
    for cell in summary["cells"]:
        rows = [r["em"] for r in results if all(r[k] == cell[k] for k in ("dataset", "method", "budget"))]
        assert cell["em"]["mean"] == sum(rows) / len(rows)
    # Rows that were left out are in the summary, in every table, and on the terminal.
    assert [one["left_out"] for one in summary["sets"]] == [0, 2]
    assert "dev.jsonl:2" in summary["sets"][1]["problems"][0]
    (left_out,) = [
        r for r in csv.DictReader((directory / "table.csv").open()) if r["metric"] == "rows left out"
    ]
    assert left_out["questions short"] == "2"
    assert "| *rows left out* |  | 0 | 2 |" in (directory / "table.md").read_text()
    assert "rows left out &  & 0 & 2" in (directory / "table.tex").read_text()
    assert "left out of questions short" in output and "dev.jsonl:2" in output
    assert "8/8 questions" in output and "a minute" in output and "left 0:00:00" in output
    raw = summary["sets"][0]["raw_history"]
    assert raw["documents_cut"] == 0 and raw["given_tokens"] == summary["sets"][0]["document_tokens"]
    assert "<html" in (directory / "report.html").read_text()[:200]
    assert sorted(path.name for path in (directory / "plots").iterdir()) == [
        *("em_by_budget.svg", "f1_by_budget.svg", "sub_em_by_budget.svg")
    ]


def test_interrupted_at_random_and_run_again_it_leaves_the_same(place, whole, by_hand):
    folder, _ = place
    directory = folder / "killed"
    by_hand.make_entries(directory, (("nq", "10k"),), 2, pages=False)  # another evaluation: moved aside
    journal = directory / "journal/part-00000.jsonl"

    def lines():
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    def interrupt(number, fresh):
        before, process = 0 if fresh else lines(), start(place, "killed", *fresh)

        def begun():
            return lines() > before and (not fresh or (folder / "killed.1").exists())

        wait_until(lambda: begun() or process.poll() is not None)
        time.sleep(random.random() * 0.3)
        process.send_signal(number)
        return finish(process)

    for number, status, fresh in ((signal.SIGKILL, -9, ["--run.fresh"]), (signal.SIGTERM, 75, [])):
        returned, output = interrupt(number, fresh)
        assert returned in (status, 0), output  # 0: it was faster
        if returned == 75:
            assert "the same command continues" in output
            so_far = (directory / "results.jsonl").read_bytes()
            assert so_far and (whole[0] / "results.jsonl").read_bytes().startswith(so_far)
    with journal.open("ab") as file:
        file.write(b'{"place": [1, 3], "resul')
    done = lines()
    assert len((folder / "killed.1/journal/part-00000.jsonl").read_bytes().splitlines()) == 2
    status, output = finish(start(place, "killed"))
    assert status == 0, output
    assert f"continuing: {done} of 8 questions are finished" in output
    for name in ("results.jsonl", "summary.json", "table.md", "table.csv", "table.tex"):
        assert (directory / name).read_bytes() == (whole[0] / name).read_bytes(), name
    assert {p.name for p in (directory / "pages").iterdir()} == {
        p.name for p in (whole[0] / "pages").iterdir()
    }


def test_another_evaluation_is_refused_at_once(place, whole, monkeypatch):
    from memocr_jax.core.errors import UserError
    from memocr_jax.evaluate import main

    directory, _ = whole
    before = (directory / "results.jsonl").read_bytes()
    monkeypatch.chdir(place[0])
    with pytest.raises(UserError, match=r"eval.temperature is 1.0 there and 0.0 here.*--run.fresh"):
        main(["--config", "eval.yaml", "--to", "whole", "--eval.temperature", "0"])
    assert (directory / "results.jsonl").read_bytes() == before
