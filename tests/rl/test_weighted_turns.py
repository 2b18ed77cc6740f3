"""Which turns of a rollout are trained, and with what."""

import numpy as np
import pytest

from memocr_jax.agent.agent import Memory, Reading
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.rl.rewards import Scores
from memocr_jax.rl.step import Rollout, weighted_turns


def turn(kind):
    ids = np.arange(3, dtype=np.int32)
    return Turn(0, 0, kind, ids, ids, None, Completion(ids, np.zeros(3, np.float32), Stop.EOS))


@pytest.mark.parametrize("train_reads", [True, False])
def test_reads_are_trained_unless_told_otherwise(train_reads):
    draft, std, low = turn(TurnKind.DRAFT), turn(TurnKind.QA), turn(TurnKind.QA_LOWRES)
    result = Rollout(
        [],
        [Memory(0, 0, "", (draft,))],
        [Reading(std, "", "", ("x",)), Reading(low, "", "", ("x",))],
        Scores(np.zeros((1, 1, 3)), np.array([[[True, True, False]]])),
        read_advantage=np.array([[[1.0, 2.0, 3.0]]]),
        draft_advantage=np.array([[4.0]]),
        train_reads=train_reads,
    )
    expected = [(TurnKind.DRAFT, 4.0)] + [(TurnKind.QA, 1.0), (TurnKind.QA_LOWRES, 2.0)] * train_reads
    assert [(t.turn.kind, t.advantage) for t in weighted_turns(result)] == expected
