import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.config.data import DataConfig, SyntheticConfig
from memocr_jax.core.errors import UserError
from memocr_jax.data.loader import load_examples
from memocr_jax.data.pipeline import ExampleStream, QuestionOrder, own_share
from memocr_jax.models.tokenizer import load_tokenizer

STEPS = 12


@pytest.fixture(scope="module")
def examples():
    return load_examples(DataConfig(synthetic=SyntheticConfig(questions=50)), load_tokenizer(), "train")


def stream(examples, **options):
    """Six questions a step, in mini-batches of three."""
    return ExampleStream(examples, 6, 3, seed=3, **options)


def plain(example):
    return example.example_id, np.concatenate(example.chunks).tolist()


def taken(source, steps):
    return [[plain(example) for example in source.take(step)] for step in steps]


@pytest.fixture(scope="module")
def expected(examples):
    """The questions of each step, from their order alone."""
    order = QuestionOrder(50, 6, seed=3)
    return [[plain(examples[int(i)]) for i in order[step]] for step in range(STEPS)]


def test_the_stream_follows_the_order_of_questions(examples, expected):
    with stream(examples) as source:
        source.start(1)
        assert taken(source, range(1, STEPS + 1)) == expected


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_and_are_gone_at_the_end(examples, expected, workers):
    before = set(multiprocessing.active_children())
    with stream(examples, workers=workers) as source:
        source.start(1)
        assert taken(source, range(1, 6)) == expected[:5]
        assert len(set(multiprocessing.active_children()) - before) == workers
    assert set(multiprocessing.active_children()) == before


def test_mini_batches_are_the_same_for_any_number_of_processes(examples, expected):
    with stream(examples) as whole:
        everything = taken(whole, range(1, STEPS + 1))
    shares = []
    for process in range(3):
        with stream(examples, process=process, processes=3) as source:
            shares.append(taken(source, range(1, STEPS + 1)))
    for step in range(STEPS):
        # Each of the three processes has one question of each of the two mini-batches.
        for minibatch in range(2):
            together = [share[step][minibatch] for share in shares]
            assert together == everything[step][3 * minibatch : 3 * minibatch + 3]


@pytest.mark.parametrize(("cut", "workers"), [*((cut, 0) for cut in range(1, 8)), (4, 2)])
def test_a_run_goes_on_after_any_step_with_another_number_of_workers(examples, expected, cut, workers):
    with stream(examples) as source:
        taken(source, range(1, cut + 1))
        # With rl.staleness 1 the next step may have been taken before this one's checkpoint is written.
        source.take(cut + 1)
        state = source.state(cut)
    with stream(examples, workers=workers) as source:
        source.resume(state, cut, "runs/x")
        assert taken(source, range(cut + 1, 10)) == expected[cut:9]


def test_a_checkpoint_of_before_the_stream_kept_its_place_goes_on_by_its_step(examples, expected):
    order = {"run.seed": 3, "number of questions": 50, "rl.questions_per_step": 6}
    for state in ({}, order):
        with stream(examples) as source:
            source.resume(state, 4, "runs/x")
            assert taken(source, range(5, 8)) == expected[4:7]


def test_another_order_of_questions_is_refused(examples):
    state = stream(examples).state(4)
    with pytest.raises(UserError, match=r"^runs/x: .* made with run\.seed 3, now it is 4, .*--run\.fresh"):
        ExampleStream(examples, 6, 3, seed=4).resume(state, 4, "runs/x")
    with pytest.raises(UserError, match=r"rl\.questions_per_step 6, now it is 3"):
        ExampleStream(examples, 3, 3, seed=3).resume(state, 4, "runs/x")
    with pytest.raises(UserError, match="number of questions 50, now it is 40, which changes the order"):
        stream([examples[i] for i in range(40)]).resume(state, 4, "runs/x")


def test_far_steps_can_be_entered(examples):
    order = QuestionOrder(50, 6, seed=3)
    with stream(examples) as source:
        assert taken(source, [10**6]) == [[plain(examples[int(i)]) for i in order[10**6 - 1]]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_document_that_cannot_be_made_is_the_user_s_error_at_its_step(workers):
    examples = load_examples(DataConfig(chunk_tokens=5), load_tokenizer(), "train")
    with ExampleStream(examples, 2, 2, seed=0, workers=workers) as source:
        source.start(1)
        with pytest.raises(UserError, match=r"^data\.chunk_tokens: 5 is too small"):
            source.take(1)


def test_shares_hold_the_same_mini_batches_for_any_number_of_processes():
    questions = list(range(100, 112))  # 2 mini-batches of 6
    shares = [own_share(questions, 6, process, 3) for process in range(3)]
    assert shares == [[100, 101, 106, 107], [102, 103, 108, 109], [104, 105, 110, 111]]
    for minibatch in range(2):
        own = {question for share in shares for question in share[2 * minibatch : 2 * minibatch + 2]}
        assert own == set(questions[6 * minibatch : 6 * minibatch + 6])


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_takes_every_question_at_most_once(number, per_step, seed):
    if number < per_step:
        with pytest.raises(UserError, match=r"^rl\.questions_per_step"):
            QuestionOrder(number, per_step, seed)
        return
    order = QuestionOrder(number, per_step, seed)
    assert order.steps_per_epoch == number // per_step
    for epoch in range(3):
        steps = [order[epoch * order.steps_per_epoch + i] for i in range(order.steps_per_epoch)]
        taken = np.concatenate(steps).tolist()
        assert len(taken) == len(set(taken)) == order.steps_per_epoch * per_step
        assert set(taken) <= set(range(number))


def test_the_order_is_random_seeded_and_can_be_entered_anywhere():
    order = QuestionOrder(100, 8, seed=1)
    first = [order[step].tolist() for step in range(30)]
    assert [QuestionOrder(100, 8, seed=1)[step].tolist() for step in reversed(range(30))] == first[::-1]
    assert QuestionOrder(100, 8, seed=2)[0].tolist() != first[0]
    assert first[0] != first[12], "each epoch is shuffled anew"
