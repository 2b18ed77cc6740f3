"""Which turns of a rollout are trained, and with what."""

import dataclasses

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


@pytest.mark.parametrize("leave_out_flat", [False, True])
def test_groups_that_teach_nothing_may_be_left_out(leave_out_flat):
    def of(q, g, kind):
        return dataclasses.replace(turn(kind), q=q, g=g)

    groups = [(q, g) for q in (0, 1) for g in (0, 1)]
    result = Rollout(
        [],
        [Memory(q, g, "", (of(q, g, TurnKind.DRAFT),)) for q, g in groups],
        [Reading(of(q, g, TurnKind.QA), "", "", ("x",)) for q, g in groups],
        Scores(np.zeros((2, 2, 3)), np.ones((2, 2, 3), bool)),
        # All samples of question 0 earned the same; of question 1 one sample has the mean reward by chance.
        read_advantage=np.array([[[0.0] * 3] * 2, [[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]]),
        draft_advantage=np.array([[0.0, 0.0], [0.25, 0.0]]),
        leave_out_flat=leave_out_flat,
    )
    trained = [(t.turn.q, t.turn.g, t.turn.kind) for t in weighted_turns(result)]
    everything = [(q, g, kind) for kind in (TurnKind.DRAFT, TurnKind.QA) for q, g in groups]
    assert trained == [t for t in everything if t[0] == 1 or not leave_out_flat]
