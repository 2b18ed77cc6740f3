"""Which trajectories a run keeps."""

import json

import numpy as np
import pytest

from memocr_jax.agent.agent import Memory
from memocr_jax.config import LogConfig
from memocr_jax.core.types import Completion, QaExample, Stop, Turn, TurnKind
from memocr_jax.models.tokenizer import load_tokenizer
from memocr_jax.rl.rewards import Scores
from memocr_jax.rl.step import Rollout
from memocr_jax.rl.trajectories import TrajectoryLog
from render.types import MemoryPage, PageStatus


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("")


@pytest.fixture(scope="module")
def sampled():
    """One question, one memory of one chunk, whose page is white."""
    ids = np.arange(3, dtype=np.int32)
    completion = Completion(ids, np.zeros(3, np.float32), Stop.EOS)
    draft = Turn(0, 0, TurnKind.DRAFT, ids, ids, None, completion, chunk=0)
    page = MemoryPage(pixels=np.full((28, 56, 3), 255, np.uint8), status=PageStatus.OK, content_hash="white")
    return Rollout(
        [QaExample("a", "Who?", (ids,), ("Ann",))],
        [Memory(0, 0, "# Ann", (draft,), page)],
        [],
        Scores(np.zeros((1, 1, 3)), np.zeros((1, 1, 3), bool)),
        read_advantage=np.zeros((1, 1, 3)),
        draft_advantage=np.zeros((1, 1)),
    )


def steps(run_dir):
    """Steps with turns, which are those with pages."""
    kept = sorted(path.stem for path in (run_dir / "trajectories").glob("step_*.jsonl"))
    assert sorted(path.name for path in (run_dir / "trajectories/pages").glob("*")) == kept
    return [int(name.removeprefix("step_")) for name in kept]


def write(run_dir, log, tokenizer, sampled, numbers, after=0, **options):
    trajectories = TrajectoryLog(run_dir, log, tokenizer, after, **options)
    for step in numbers:
        trajectories.write(step, sampled)


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_the_newest_are_kept(tmp_path, tokenizer, sampled, keep, kept):
    log = LogConfig(trajectory_every_steps=2, keep_trajectory_steps=keep)
    write(tmp_path, log, tokenizer, sampled, range(1, 8))
    assert steps(tmp_path) == kept
    for step in kept:
        lines = (tmp_path / f"trajectories/step_{step:06d}.jsonl").read_text().splitlines()
        assert [json.loads(line)["kind"] for line in lines] == ["DRAFT"]


def test_keeping_none_removes_what_was_kept_before(tmp_path, tokenizer, sampled):
    write(tmp_path, LogConfig(keep_trajectory_steps=3), tokenizer, sampled, range(1, 4))
    assert steps(tmp_path) == [1, 2, 3]
    write(tmp_path, LogConfig(keep_trajectory_steps=0), tokenizer, sampled, [4], after=3)
    assert steps(tmp_path) == []


def test_what_an_earlier_attempt_wrote_after_the_checkpoint_goes(tmp_path, tokenizer, sampled):
    write(tmp_path, LogConfig(), tokenizer, sampled, range(1, 5))
    write(tmp_path, LogConfig(), tokenizer, sampled, [5], after=2, quiet=True)
    assert steps(tmp_path) == [1, 2, 3, 4], "a quiet log touches nothing"
    write(tmp_path, LogConfig(), tokenizer, sampled, [], after=2)
    assert steps(tmp_path) == [1, 2]
