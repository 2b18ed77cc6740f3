"""Scoring readings."""

import numpy as np

from memocr_jax.agent.agent import Reading
from memocr_jax.core.types import Completion, QaExample, Stop, Turn, TurnKind
from memocr_jax.rl.rewards import score_readings

NONE = np.zeros(0, np.int32)


def example(*answers):
    return QaExample("id", "Who?", (np.arange(4),), answers)


def reading(q, g, kind, text, expected):
    turn = Turn(q, g, kind, NONE, NONE, None, Completion(NONE, NONE.astype(np.float32), Stop.EOS))
    return Reading(turn, text, "asked", expected)


def test_exact_match_of_the_last_box_and_the_order_of_objectives():
    examples = [example("Ann", "Anna")]
    readings = [
        reading(0, 0, TurnKind.QA, r"I say \boxed{Bob}, no, \boxed{the ANN.}", ("Ann", "Anna")),
        reading(0, 0, TurnKind.QA_LOWRES, "Ann", ("Ann", "Anna")),  # not boxed
        reading(0, 0, TurnKind.GAP_FILL, r"\boxed{red, green, blue}", ("red, green, blue",)),
        reading(0, 1, TurnKind.QA, r"\boxed{Anna}", ("Ann", "Anna")),
    ]
    scores = score_readings(examples, 2, readings)
    np.testing.assert_array_equal(scores.rewards[0, 0], [1, 0, 1])  # std, augM, augQ
    np.testing.assert_array_equal(scores.rewards[0, 1], [1, 0, 0])
    np.testing.assert_array_equal(scores.scored[0], [[True, True, True], [True, False, False]])


def test_a_question_without_an_answer_trains_nothing():
    readings = [
        reading(0, 0, TurnKind.QA, r"\boxed{x}", ()),
        reading(0, 0, TurnKind.GAP_FILL, r"\boxed{a, b, c}", ("a, b, c",)),
        reading(1, 0, TurnKind.QA, r"\boxed{x}", ("x",)),
    ]
    scores = score_readings([example(), example("x")], 1, readings)
    assert not scores.scored[0].any()
    assert scores.scored[1, 0].tolist() == [True, False, False]
