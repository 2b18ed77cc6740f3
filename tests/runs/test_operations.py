"""Each process of a run is watched over."""

from __future__ import annotations

import logging

import pytest

from memocr_jax.config import Config
from memocr_jax.runs.operations import Operations


def test_each_process_has_a_log(tmp_path):
    with pytest.raises(RuntimeError), Operations(Config(), tmp_path, process=3) as watched:
        watched.begin(1)
        logging.getLogger("some.library").warning("odd")
        watched.end(1, {"update": 1.5})
        raise RuntimeError("the end")
    text = (tmp_path / "logs" / "process_0003.log").read_text()
    assert "process 0 of 1 on " in text and "WARNING some.library: odd" in text
    assert "step 1: update 1.5" in text and "RuntimeError: the end" in text
    assert not (tmp_path / "goodput.json").exists(), "process 0 keeps the account"
    assert not (tmp_path / "stacks").exists()
