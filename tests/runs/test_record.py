"""A run directory read back, also while the run writes it."""

from __future__ import annotations

import json

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.runs.record import read_json_lines, read_run


def leave(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))


def test_of_a_step_written_twice_the_later_line_counts(tmp_path):
    leave(tmp_path / "metrics.jsonl", {"step": 2, "a": 1}, {"step": 1, "a": 0}, {"step": 2, "a": 3})
    leave(tmp_path / "timing.jsonl", {"step": 2, "time/step_s": 5}, {"step": 9, "time/step_s": 5})
    assert read_run(tmp_path).metrics == ({"step": 1, "a": 0}, {"step": 2, "a": 3, "time/step_s": 5})


@pytest.mark.parametrize("step", [None, True, "1", 1.0, [1], 10**400])
def test_a_line_without_a_step_is_left_out(tmp_path, step):
    leave(tmp_path / "metrics.jsonl", {"step": step}, {"step": 1})
    leave(tmp_path / "timing.jsonl", {"step": step, "a": 1})
    assert read_run(tmp_path).metrics == ({"step": 1},)


def test_what_cannot_be_read_is_noted(tmp_path):
    leave(tmp_path / "metrics.jsonl", {"step": 1}, '{"step": 2, "rew')
    leave(tmp_path / "config.yaml", "a: [")
    leave(tmp_path / "about.json", "[]")
    record = read_run(tmp_path)
    assert record.notes == (
        "metrics.jsonl: 1 unreadable line left out",
        "config.yaml could not be read",
        "about.json could not be read",
    )
    assert (record.config, record.config_text, record.about) == ({}, "a: [", {})
    assert read_json_lines(tmp_path / "none.jsonl") == ([], 0)


def test_trajectories_are_files_of_a_step(tmp_path):
    leave(tmp_path / "metrics.jsonl")
    (tmp_path / "trajectories").mkdir()
    for name in ("step_000010.jsonl", "step_000002.jsonl", "step_x.jsonl"):
        leave(tmp_path / "trajectories" / name)
    assert [(step, path.name) for step, path in read_run(tmp_path).turn_files.items()] == [
        (2, "step_000002.jsonl"),
        (10, "step_000010.jsonl"),
    ]


def test_not_a_run_directory(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"neither config.yaml nor metrics.jsonl"):
        read_run(tmp_path)
