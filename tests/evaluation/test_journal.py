"""Finished questions survive a kill at any byte, and are used under the same settings only."""

from __future__ import annotations

import json

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.evaluation.journal import Journal, write_results


def entry(place):
    return {"results": [{"id": f"q{place}", "prediction": "é\ud800\n"}]}


def test_a_line_cut_at_any_byte_is_dropped_and_written_again(tmp_path):
    places = [(0, 0), (0, 1), (1, 0)]
    whole = Journal(tmp_path / "whole")
    whole.open({"a": 1})
    for place in places:
        whole.append(place, entry(place))
    write_results(whole.directory, whole.finished())
    data = (tmp_path / "whole/journal/part-00000.jsonl").read_bytes()
    for cut in [*range(0, len(data), 4), len(data)]:
        journal = Journal(tmp_path / "cut")
        journal.open({"a": 1})
        (tmp_path / "cut/journal/part-00000.jsonl").write_bytes(data[:cut])
        journal = Journal(tmp_path / "cut")
        journal.open({"a": 1})
        finished = journal.finished()
        assert list(finished) == places[: data[:cut].count(b"\n")]
        for place in places:
            if place not in finished:
                journal.append(place, entry(place))
        assert (tmp_path / "cut/journal/part-00000.jsonl").read_bytes() == data
    write_results(journal.directory, journal.finished())
    assert (tmp_path / "cut/results.jsonl").read_bytes() == (tmp_path / "whole/results.jsonl").read_bytes()
    assert json.loads((tmp_path / "cut/results.jsonl").read_text().splitlines()[0])["id"] == "q(0, 0)"


def test_the_parts_of_several_processes_are_one_evaluation_in_order(tmp_path):
    for process in (0, 1):
        journal = Journal(tmp_path, process)
        journal.open({"a": 1})
        for i in range(process, 5, 2):
            journal.append((0, i), entry((0, i)))
    # The other process's cut line counts as missing, and is left for it.
    with (tmp_path / "journal/part-00001.jsonl").open("ab") as file:
        file.write(b'{"place": [0, 7')
    assert list(Journal(tmp_path).finished()) == [(0, i) for i in range(5)]


def test_another_evaluation_is_refused(tmp_path):
    Journal(tmp_path).open({"eval.temperature": 1.0, "checkpoint step": 20})
    with pytest.raises(UserError, match=r"eval.temperature is 1.0 there and 0.0 here.*--to.*--run.fresh"):
        Journal(tmp_path).open({"eval.temperature": 0.0, "checkpoint step": 20})
    Journal(tmp_path).open({"eval.temperature": 1.0, "checkpoint step": 20})


def test_what_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--to .*file.*cannot be made"):
        Journal(tmp_path / "file" / "x").open({})
