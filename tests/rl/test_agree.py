"""Mini-batches of several processes: shapes alike, sums over all, image features in their place."""

import json

import numpy as np
import pytest

from memocr_jax.rl import agree as module
from memocr_jax.rl.agree import agree
from memocr_jax.rl.pack import MiniBatch, Packing, Shape, batch_shape, empty_batch


@pytest.fixture
def packing(small_model):
    return Packing(small_model.config, max_row_tokens=64, rows=2, length_multiple=16, window_multiple=1)


def exchange(monkeypatch, packing, everyone):
    """What each process makes of its mini-batches when they are exchanged."""
    sent = []
    monkeypatch.setattr(module.jax, "process_count", lambda: len(everyone))
    for process, minibatches in enumerate(everyone):
        monkeypatch.setattr(module, "own_rows", lambda mesh, p=process: (2 * p, 2))
        monkeypatch.setattr(
            module, "gather", lambda mine: sent.append(json.loads(json.dumps(mine))) or [mine]
        )
        agree(minibatches, packing, None)
    results = []
    for process, minibatches in enumerate(everyone):
        monkeypatch.setattr(module, "own_rows", lambda mesh, p=process: (2 * p, 2))
        monkeypatch.setattr(module, "gather", lambda mine: sent)
        results.append(agree(minibatches, packing, None))
    return results


def test_who_lacks_a_micro_batch_adds_padding(monkeypatch, packing):
    text, page = Shape(0, 32, 8), Shape(1, 48, 16)

    def make(shape):
        return empty_batch(shape, packing)._replace(advantage=np.ones((2, shape.sampled), np.float32))

    everyone = [
        [MiniBatch([make(page), make(text), make(text)], tokens=5, sequences=2, longest=4)],
        [MiniBatch([make(text)], tokens=7, sequences=3, longest=6)],
    ]
    first, second = (result[0] for result in exchange(monkeypatch, packing, everyone))
    for agreed in (first, second):
        assert [batch_shape(b) for b in agreed.batches] == [text, text, page]
        assert (agreed.tokens, agreed.sequences, agreed.longest) == (12, 5, 6)

    def real(m):
        return [bool(b.advantage.any()) for b in m.batches]

    assert real(first) == [True, True, True] and real(second) == [True, False, False]
    padding = second.batches[2]
    assert (padding.segments == -1).all() and not padding.loss_mask.any() and not padding.vision.valid.any()


def test_image_features_of_a_process_come_after_those_of_the_processes_before_it(monkeypatch, packing):
    batch = empty_batch((1, 32, 8), packing)
    slots = np.full((2, 32), -1, np.int32)
    slots[0, 3], slots[1, 5] = 0, 16  # the first features of the two rows: 16 slots in a window
    batch = batch._replace(image_slots=slots)
    everyone = [[MiniBatch([batch], 1, 1, 1)]] * 2
    first, second = (r[0].batches[0].image_slots for r in exchange(monkeypatch, packing, everyone))
    np.testing.assert_array_equal(first, slots)
    # Process 1's rows are 2 and 3 of the global batch, so its features begin at 2 x 16.
    assert (second[0, 3], second[1, 5]) == (32, 48) and (second >= 0).sum() == 2


def test_alone_nothing_changes(packing):
    minibatches = [MiniBatch([], 0, 0, 0)]
    assert agree(minibatches, packing, None)[0] is minibatches[0]
