"""Accuracies and their intervals, from results whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from memocr_jax.evaluation.summary import METRICS, summarise


@pytest.fixture
def result(by_hand):
    return by_hand.result


def cell_of(summary, **wanted):
    (cell,) = [c for c in summary["cells"] if all(c[k] == v for k, v in wanted.items())]
    return cell


def test_means_are_over_all_questions_and_failures_are_wrong(result):
    results = [
        result(),
        result(id="b", em=0.0, f1=0.5, prediction="x y"),
        result(id="c", em=0.0, f1=0.0, sub_em=0.0, prediction=None, status="TIMEOUT", image_tokens=None),
        result(id="d", em=0.0, f1=0.0, sub_em=0.0, status="NO_ANSWER", answers=[]),
    ]
    summary = summarise(results)
    cell = cell_of(summary, budget=64)
    assert (cell["em"]["mean"], cell["f1"]["mean"], cell["sub_em"]["mean"]) == (0.25, 0.375, 0.5)
    assert (cell["questions"], cell["answers"], cell["failed"], cell["boxed"]) == (4, 4, 2, 0.75)
    assert cell["image_tokens"] == 60
    assert summary["questions"] == 4
    assert summary["failures"] == [
        "nq 10k, c, sample 0: visual memory TIMEOUT",
        "nq 10k, d, sample 0: no accepted answer",
    ]


def test_change_is_relative_to_the_methods_largest_budget(result):
    results = [
        result(budget=b, id=str(i), em=float(i < right))
        for b, right in ((512, 8), (64, 4), (8, 0))
        for i in range(10)
    ]
    results += [result(budget=None, method="raw history", em=0.0)]
    summary = summarise(results, resamples=0)
    assert [cell_of(summary, budget=b)["em"]["drop"] for b in (512, 64, 8)] == [0, -0.5, -1]
    assert cell_of(summary, budget=64)["em"]["low"] is None
    # Nothing to be relative to.
    assert cell_of(summary, method="raw history")["em"]["drop"] is None
    assert [(c["method"], c["budget"]) for c in summary["cells"]][-1] == ("raw history", None)


def test_intervals_are_those_of_a_binomial_mean_and_are_reproducible(result):
    n, p = 400, 0.3
    results = [result(id=str(i), em=float(i < n * p)) for i in range(n)]
    em = cell_of(summarise(results, 2000, seed=1), budget=64)["em"]
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert em["low"] == pytest.approx(p - half, abs=0.008) and em["high"] == pytest.approx(
        p + half, abs=0.008
    )
    results = [result(id=str(i), f1=i**0.5 / 3) for i in range(7)]
    first, again, other = (cell_of(summarise(results, seed=s), budget=64)["f1"] for s in (1, 1, 2))
    assert first == again and first != other


def test_samples_of_a_question_are_resampled_together(result):
    # All samples of a question agree, so 8 samples say no more than one does.
    once = [result(id=str(i), em=float(i % 2)) for i in range(60)]
    often = [result(id=str(i), em=float(i % 2), sample=g) for i in range(60) for g in range(8)]
    one, many = (cell_of(summarise(rs, 1000), budget=64) for rs in (once, often))
    assert many["em"] == pytest.approx(one["em"])
    assert (many["questions"], many["answers"]) == (60, 480)


def test_averages_are_over_data_sets_of_a_length_and_weigh_them_alike(result):
    results = [result(id=str(i), em=1.0) for i in range(10)]
    results += [result(dataset="triviaqa", id=str(i), em=0.0) for i in range(30)]
    results += [result(length="30k", id=str(i), em=1.0) for i in range(3)]
    averages = {(a["length"], a["datasets"]): a["em"]["mean"] for a in summarise(results)["averages"]}
    assert averages == {("10k", 2): 0.5, ("30k", 1): 1.0}


def test_the_hand_made_evaluation(evaluation):
    # 8 questions, LEAST repeats every 4; question 7 of hotpotqa 10k (never right below 512) has no page.
    def em(**wanted):
        return cell_of(evaluation.summary, **wanted)["em"]["mean"]

    place = {"dataset": "hotpotqa", "length": "30k", "method": "visual memory"}
    assert [em(**place, budget=b) for b in (512, 64, 8)] == [1.0, 0.75, 0.25]
    assert em(dataset="hotpotqa", length="10k", method="visual memory", budget=512) == 7 / 8
    assert (
        cell_of(evaluation.summary, dataset="nq", length="30k", method="raw history")["image_tokens"] is None
    )
    assert all(
        cell[m]["low"] <= cell[m]["mean"] <= cell[m]["high"]
        for cell in evaluation.summary["cells"]
        for m in METRICS
    )
