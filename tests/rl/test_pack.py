"""Turns to packed rows."""

import jax
import numpy as np
import pytest

from memocr_jax.core.types import Completion, RowLayout, Stop, Turn, TurnKind
from memocr_jax.rl.pack import (
    Packing,
    WeightedTurn,
    batch_shape,
    empty_batch,
    load_minibatch,
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

    def counts(m):
        return (m.tokens, m.sequences, m.longest)

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
