import itertools

import numpy as np
import pytest

from memocr_jax.config.data import DataConfig, SyntheticConfig
from memocr_jax.core.errors import UserError
from memocr_jax.data.loader import load_examples, question_order
from memocr_jax.data.pipeline import example_stream
from memocr_jax.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def examples():
    return load_examples(DataConfig(synthetic=SyntheticConfig(questions=50)), load_tokenizer(), "train")


def take(stream, number):
    """The first items as plain values."""
    return [
        (item.step, item.numbers, [(e.example_id, np.concatenate(e.chunks).tolist()) for e in item.examples])
        for item in itertools.islice(stream, number)
    ]


def test_the_stream_follows_the_order_of_questions(examples):
    order = question_order(50, 6, seed=3)
    for step, numbers, made in take(example_stream(examples, 6, seed=3), 20):
        assert numbers == tuple(range(6))
        assert [example_id for example_id, _ in made] == [examples[int(i)].example_id for i in order[step]]


def test_processes_share_each_step_among_them(examples):
    whole = take(example_stream(examples, 6, seed=3), 10)
    shares = [take(example_stream(examples, 6, 3, process_index=p, process_count=3), 10) for p in range(3)]
    for (step, _, made), *parts in zip(whole, *shares, strict=True):
        assert {part[0] for part in parts} == {step}
        numbered = sorted((n, e) for _, numbers, mine in parts for n, e in zip(numbers, mine, strict=True))
        assert [e for _, e in numbered] == made and [n for n, _ in numbered] == list(range(6))


@pytest.mark.parametrize("options", [{"threads": 1, "ahead": 1}, {"threads": 8, "ahead": 16}, {"workers": 2}])
def test_threads_and_workers_change_nothing_and_its_place_can_be_saved(examples, options):
    plain = take(example_stream(examples, 6, seed=3), 9)
    stream = example_stream(examples, 6, seed=3, **options)
    assert take(stream, 5) == plain[:5]
    state = stream.get_state()
    assert take(stream, 4) == plain[5:]
    restored = example_stream(examples, 6, seed=3, **options)
    restored.set_state(state)
    assert take(restored, 4) == plain[5:]


def test_it_can_begin_at_any_step(examples):
    plain = take(example_stream(examples, 6, seed=3), 12)
    assert take(example_stream(examples, 6, seed=3, start_step=8), 4) == plain[8:]
    assert take(example_stream(examples, 6, seed=3, start_step=10**6), 1)[0][0] == 10**6


def test_a_step_that_does_not_divide(examples):
    with pytest.raises(
        UserError, match=r"^rl\.questions_per_step: 6 questions do not divide over 4 processes"
    ):
        example_stream(examples, 6, seed=0, process_count=4)
