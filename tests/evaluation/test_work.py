"""The share of the questions that each process answers."""

import pytest

from memocr_jax.evaluation.work import EvaluationSet, EvaluationWork


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_question_belongs_to_one_process(processes):
    sets = [EvaluationSet("a", "10k", (), 5), EvaluationSet("b", "10k", (), 2)]
    finished = {(0, 1): {}, (1, 1): {}}
    works = [EvaluationWork(None, sets, None, finished, process, processes) for process in range(processes)]
    for s, one in enumerate(sets):
        assert sorted(i for work in works for i in work.own[s]) == list(range(one.questions))
    assert sum(work.total for work in works) == 7 and sum(work.left for work in works) == 5
