"""M-RoPE positions against transformers' get_rope_index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.rope import mrope_positions, next_position

CONFIG = Qwen25VLConfig()
IMAGE = CONFIG.image_token_id


@pytest.fixture(scope="module")
def get_rope_index():
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    config = Qwen2_5_VLConfig.from_dict(CONFIG.to_dict())
    config.text_config.num_hidden_layers = config.vision_config.depth = 1
    with torch.device("meta"):
        return Qwen2_5_VLModel(config).get_rope_index


pieces = st.lists(
    st.one_of(st.integers(1, 6), st.tuples(st.integers(1, 7), st.integers(1, 7))), min_size=1, max_size=7
)


@settings(max_examples=100)
@given(pieces=pieces, left=st.integers(0, 3), right=st.integers(0, 3))
def test_positions_of_any_conversation(get_rope_index, pieces, left, right):
    ids, grids = [], []
    for piece in pieces:
        if isinstance(piece, int):
            ids += [5] * piece
        else:
            # transformers tells two images apart by what is between them, as the chat template guarantees.
            ids += [
                CONFIG.vision_start_token_id,
                *[IMAGE] * (piece[0] * piece[1]),
                CONFIG.vision_end_token_id,
            ]
            grids.append((2 * piece[0], 2 * piece[1]))
    ours = mrope_positions(np.array(ids), grids, CONFIG)

    padded = torch.tensor([[9] * left + ids + [9] * right])
    mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
    theirs, delta = get_rope_index(
        padded,
        (padded == IMAGE).int(),
        image_grid_thw=torch.tensor([(1, *g) for g in grids]) if grids else None,
        attention_mask=mask,
    )
    np.testing.assert_array_equal(ours, theirs[:, 0, left : left + len(ids)].numpy())
    assert next_position(ours) == len(ids) + int(delta)


def test_an_image_by_hand():
    # Two tokens of text (0, 1), an image of 2 x 3 tokens from 2 on, then text at 2 + max(2, 3) = 5.
    positions = mrope_positions(np.array([7, 8, *[IMAGE] * 6, 9]), [(4, 6)], CONFIG)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([1, CONFIG.video_token_id], [], "stands for a video"),
        ([1, IMAGE, IMAGE], [(2, 6)], "needs 3 image tokens in a row; the text has 2"),
        ([1, IMAGE, 2, IMAGE], [(2, 4)], "needs 2 image tokens in a row; the text has 1"),
        ([1, IMAGE], [], "1 image tokens; the 0 images given account for 0"),
        ([1, 2], [(2, 2)], "the text has 0"),
    ],
)
def test_ids_that_do_not_match_their_images(ids, grids, message):
    with pytest.raises(UserError, match=message):
        mrope_positions(np.array(ids), grids, CONFIG)


def test_no_tokens():
    assert mrope_positions(np.zeros(0, np.int32), [], CONFIG).shape == (3, 0)
    assert next_position(np.zeros((3, 0), np.int32)) == 0
