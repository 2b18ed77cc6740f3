"""Turns to packed rows; mini-batches of several processes."""

import json

import jax
import numpy as np
import pytest

from memocr_jax.config import Config, EngineConfig, TrainConfig
from memocr_jax.core.types import Completion, RowLayout, Stop, Turn, TurnKind
from memocr_jax.rl import pack as module
from memocr_jax.rl.pack import (
    MiniBatch,
    Packing,
    Shape,
    WeightedTurn,
    agree,
    batch_shape,
    empty_batch,
    load_minibatch,
    micro_batches,
    pack_rows,
    pack_turns,
    save_minibatch,
)


def turn(prefix, suffix, tokens, advantage=1.0, image=None, kind=TurnKind.DRAFT):
    def as_ids(x):
        return np.array(x, np.int32)

    completion = Completion(as_ids(tokens), -np.arange(1, len(tokens) + 1, dtype=np.float32), Stop.EOS)
    return WeightedTurn(Turn(0, 0, kind, as_ids(prefix), as_ids(suffix), image, completion), advantage)


def packing(small_model, **options):
    values = {"max_row_tokens": 64, "rows": 2, "length_multiple": 8, "window_multiple": 1, **options}
    return Packing(small_model.config, **values)


def test_worked_by_hand(small_model):
    """Prefix 10 11 12; sibling 1: suffix 20, sampled 30 7; sibling 2: suffix 21 22, sampled 7."""
    minibatch = pack_turns(
        [turn([10, 11, 12], [20], [30, 7], 0.5), turn([10, 11, 12], [21, 22], [7], -2.0)],
        packing(small_model),
    )
    (batch,) = minibatch.batches
    assert (minibatch.tokens, minibatch.sequences, minibatch.longest) == (3, 2, 2)
    # index           0   1   2   3   4   5  6   7   8
    row = [10, 11, 12, 20, 30, 7, 21, 22, 7]
    assert batch.tokens[0, :9].tolist() == row
    assert batch.segments[0, :9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # Both siblings continue the prefix: their positions start at 3.
    assert batch.mrope_pos[0, 0, :9].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    # 30 was sampled at the logits of 20 (index 3), the 7s at those of 30 (4) and 22 (7).
    assert batch.predict_pos[0, :3].tolist() == [3, 4, 7]
    assert batch.target[0, :3].tolist() == [30, 7, 7]
    assert batch.sequence[0, :3].tolist() == [0, 0, 1]
    assert batch.advantage[0, :3].tolist() == [0.5, 0.5, -2.0]
    assert batch.sampler_logp[0, :3].tolist() == [-1, -2, -1]
    assert batch.loss_mask[0].tolist() == [True] * 3 + [False] * (batch.loss_mask.shape[1] - 3)
    # The second row of the micro-batch is padding, and so is the rest of the first.
    assert (batch.segments[1] == -1).all() and not batch.loss_mask[1].any()
    assert (batch.segments[0, 9:] == -1).all()
    assert batch.vision is None


def test_a_sampled_padding_id_is_trained_all_the_same(small_model):
    (batch,) = pack_turns([turn([10], [20], [0, 0, 7])], packing(small_model)).batches
    assert batch.loss_mask[0, :3].all() and batch.target[0, :3].tolist() == [0, 0, 7]


def test_pages_of_equal_size_do_not_share_a_row(small_model):
    prefix = [202, 200, 200, 203]
    one, other = np.zeros((28, 56, 3), np.uint8), np.full((28, 56, 3), 255, np.uint8)
    turns = [turn(prefix, [20], [7], image=image, kind=TurnKind.QA) for image in (one, other, one)]
    (batch,) = pack_turns(turns, packing(small_model)).batches
    siblings = batch.segments.max(axis=1).tolist()
    assert sorted(siblings) == [1, 2]  # the two readings of `one` share, `other` is alone
    # Every image token names a feature slot of its own row's image.
    slots = batch.image_slots[batch.image_slots >= 0].reshape(2, 2)
    per_row = batch.vision.valid.shape[1] * batch.vision.valid.shape[2] // 4
    assert (slots // per_row).tolist() == [[0, 0], [1, 1]]


def test_a_long_group_is_split_and_loses_nothing(small_model):
    turns = [turn(range(10, 20), [20 + i], [30 + i] * 5) for i in range(7)]
    for limit, rows in ((10 + 6 * 7, 1), (10 + 6 * 3, 3), (1, 7)):
        minibatch = pack_turns(turns, packing(small_model, max_row_tokens=limit, rows=1))
        assert len(minibatch.batches) == rows
        targets = sorted(int(t) for b in minibatch.batches for t in b.target[b.loss_mask])
        assert targets == sorted(30 + i for i in range(7) for _ in range(5))
        assert minibatch.tokens == 35


def test_small_rows_take_the_place_of_padding_and_nothing_else(small_model):
    large = [turn([i], [20], [30 + i] * 12) for i in range(10, 13)]
    small = [turn([i], [20], [30 + i]) for i in range(20, 24)]
    minibatch = pack_turns([*small, *large], packing(small_model, rows=2))
    lengths = [batch.tokens.shape[1] for batch in minibatch.batches]
    # Three large rows leave room for one small one; the other three need two micro-batches of their own.
    assert lengths == [16, 16, 8, 8]
    targets = sorted(int(t) for b in minibatch.batches for t in b.target[b.loss_mask])
    assert targets == sorted([*(30 + i for i in range(10, 13) for _ in range(12)), *range(50, 54)])
    page = turn([202, 200, 200, 203], [20], [7] * 12, image=np.zeros((28, 56, 3), np.uint8), kind=TurnKind.QA)
    with_page = pack_turns([page, small[0]], packing(small_model)).batches
    assert [batch.vision is None for batch in with_page] == [False, True]


@pytest.mark.parametrize("row_layout", ["packed", "aligned"])
def test_a_minibatch_comes_back_from_its_file(small_model, tmp_path, row_layout):
    prefix, page = [202, 200, 200, 203], np.zeros((28, 56, 3), np.uint8)
    turns = [
        turn([10, 11], [20], [30, 7], float("nan")),
        turn(prefix, [20], [7], image=page, kind=TurnKind.QA),
        turn(range(40), [20], [7] * 9),
    ]
    minibatch = pack_turns(turns, packing(small_model, row_layout=row_layout))
    number = {"packed": 2, "aligned": 3}[row_layout]  # rows without gaps share a micro-batch
    assert len(minibatch.batches) == number and {b.vision is None for b in minibatch.batches} == {True, False}
    save_minibatch(tmp_path / "m.npz", minibatch)
    loaded = load_minibatch(tmp_path / "m.npz")

    def counts(minibatch):
        return minibatch.tokens, minibatch.sequences, minibatch.longest

    assert counts(loaded) == counts(minibatch) == (12, 3, 9)
    assert jax.tree.structure(loaded.batches) == jax.tree.structure(minibatch.batches)
    for ours, theirs in zip(jax.tree.leaves(loaded.batches), jax.tree.leaves(minibatch.batches), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_aligned_rows_by_hand(small_model):
    """Prefix of 3 in 4 slots; siblings of 3 and 5 in 6 slots each, the longer first."""
    turns = [turn([10, 11, 12], [20], [30, 7], 0.5), turn([10, 11, 12], [21, 22], [31, 32, 7], -2.0)]
    aligned = packing(small_model, row_layout="aligned", length_multiple=8)  # prefix in 4s, siblings in 1s
    (batch,) = pack_turns(turns, aligned).batches
    assert batch.layout == RowLayout(prefix=4, siblings=2, own=6)
    assert batch.tokens.shape == (2, 16) and batch_shape(batch) == (0, 16, 6, 4, 2, 6)
    assert batch.tokens[0].tolist() == [10, 11, 12, 0, 21, 22, 31, 32, 7, 0, 20, 30, 7, 0, 0, 0]
    assert batch.segments[0].tolist() == [0, 0, 0, -1, 1, 1, 1, 1, 1, -1, 2, 2, 2, -1, -1, -1]
    # Padding is no time that passes: both siblings count on from the prefix's 3 tokens.
    assert batch.mrope_pos[0, 0, [4, 5, 8, 10, 12]].tolist() == [3, 4, 7, 3, 5]
    assert batch.predict_pos[0, :5].tolist() == [5, 6, 7, 10, 11]
    assert batch.target[0, :5].tolist() == [31, 32, 7, 30, 7]
    # The layout is a part of what a program is made for, and no array.
    assert len(jax.tree.leaves(batch)) == len(jax.tree.leaves(batch._replace(layout=None)))
    assert jax.tree.structure(batch) != jax.tree.structure(batch._replace(layout=None))
    empty = empty_batch(batch_shape(batch), aligned)
    assert jax.tree.structure(empty) == jax.tree.structure(batch) and (empty.segments == -1).all()


def test_aligned_rows_are_split_by_their_padded_length(small_model):
    turns = [turn(range(10, 14), [20], [30 + i] * (1 + i)) for i in range(6)]  # siblings of 2 .. 7 tokens
    options = {"row_layout": "aligned", "rows": 1, "length_multiple": 8}
    # Longest first: 7 takes 8 slots, so 4 + 2 * 8 = 20 holds two rows of it; then 5 (6 slots), 3 (3).
    minibatch = pack_turns(turns, packing(small_model, max_row_tokens=20, **options))
    layouts = sorted((b.layout.siblings, b.layout.own) for b in minibatch.batches)
    assert layouts == [(2, 3), (2, 6), (2, 8)]
    assert sum(int(b.loss_mask.sum()) for b in minibatch.batches) == minibatch.tokens == 21


def test_an_arrangement_says_which_turn_is_where(small_model):
    """A caller finds each of its turns again in the packed rows."""
    turns = [turn([i], [20], [30 + 10 * i + k] * (1 + k)) for i in range(3) for k in range(2)]
    found = []
    for shape, rows in micro_batches(turns, packing(small_model)):
        batch = pack_rows(rows, shape, packing(small_model))
        for b, row in enumerate(rows):
            for k, t in enumerate(row):
                tokens = batch.target[b][batch.loss_mask[b] & (batch.sequence[b] == k)]
                np.testing.assert_array_equal(tokens, t.turn.completion.tokens)
                found.append(int(tokens[0]))
    assert sorted(found) == [30, 31, 40, 41, 50, 51]


def test_a_process_packs_its_share_of_a_micro_batch(monkeypatch, small_model):
    config = Config(
        engine=EngineConfig(window_multiple=3),
        train=TrainConfig(max_row_tokens=99, micro_batch_rows=8, length_multiple=5, row_layout="aligned"),
    )
    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    assert Packing.of(config, small_model.config) == Packing(small_model.config, 99, 4, 5, 3, "aligned")


# Mini-batches of several processes: shapes alike, sums over all, image features in their place.


def exchange(monkeypatch, how, everyone):
    """The mini-batches of each process after the exchange."""
    sent = []
    monkeypatch.setattr(module.jax, "process_count", lambda: len(everyone))
    for process, minibatches in enumerate(everyone):
        monkeypatch.setattr(module, "own_rows", lambda mesh, p=process: (2 * p, 2))
        monkeypatch.setattr(
            module, "gather", lambda mine: sent.append(json.loads(json.dumps(mine))) or [mine]
        )
        agree(minibatches, how, None)
    results = []
    for process, minibatches in enumerate(everyone):
        monkeypatch.setattr(module, "own_rows", lambda mesh, p=process: (2 * p, 2))
        monkeypatch.setattr(module, "gather", lambda mine: sent)
        results.append(agree(minibatches, how, None))
    return results


def test_who_lacks_a_micro_batch_adds_padding(monkeypatch, small_model):
    how = packing(small_model, length_multiple=16)
    text, page = Shape(0, 32, 8), Shape(1, 48, 16)

    def make(shape):
        return empty_batch(shape, how)._replace(advantage=np.ones((2, shape.sampled), np.float32))

    everyone = [
        [MiniBatch([make(page), make(text), make(text)], tokens=5, sequences=2, longest=4)],
        [MiniBatch([make(text)], tokens=7, sequences=3, longest=6)],
    ]
    first, second = (result[0] for result in exchange(monkeypatch, how, everyone))
    for agreed in (first, second):
        assert [batch_shape(b) for b in agreed.batches] == [text, text, page]
        assert (agreed.tokens, agreed.sequences, agreed.longest) == (12, 5, 6)

    def real(minibatch):
        return [bool(batch.advantage.any()) for batch in minibatch.batches]

    assert real(first) == [True, True, True] and real(second) == [True, False, False]
    padding = second.batches[2]
    assert (padding.segments == -1).all() and not padding.loss_mask.any() and not padding.vision.valid.any()


def test_image_features_of_a_process_come_after_those_of_the_processes_before_it(monkeypatch, small_model):
    how = packing(small_model, length_multiple=16)
    batch = empty_batch((1, 32, 8), how)
    slots = np.full((2, 32), -1, np.int32)
    slots[0, 3], slots[1, 5] = 0, 16  # the first features of the two rows: 16 slots in a window
    batch = batch._replace(image_slots=slots)
    everyone = [[MiniBatch([batch], 1, 1, 1)]] * 2
    first, second = (r[0].batches[0].image_slots for r in exchange(monkeypatch, how, everyone))
    np.testing.assert_array_equal(first, slots)
    # Process 1's rows are 2 and 3 of the global batch, so its features begin at 2 x 16.
    assert (second[0, 3], second[1, 5]) == (32, 48) and (second >= 0).sum() == 2


def test_alone_nothing_changes(small_model):
    how = packing(small_model)
    minibatches = [MiniBatch([], 0, 0, 0)]
    assert agree(minibatches, how, None)[0] is minibatches[0]
