"""Image preparation against transformers' processor, and the padded-window layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import VisionConfig
from memocr_jax.models.images import (
    ImageSettings,
    cut_patches,
    grid_tokens,
    image_hash,
    num_windows,
    pack_patches,
    prepare_image,
    resize,
    smart_resize,
    vision_batch,
)

CONFIG = VisionConfig()


@pytest.fixture(scope="module")
def processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 20)


@settings(max_examples=40)
@given(height=st.integers(8, 300), width=st.integers(8, 300), seed=st.integers(0, 99))
def test_patches_are_those_of_the_processor_bit_for_bit(processor, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = processor(images=[image], return_tensors="np")
    limits = ImageSettings(max_pixels=28 * 28 * 20)
    patches, grid = prepare_image(resize(image, CONFIG, limits), CONFIG, limits)
    assert (1, *grid) == tuple(theirs["image_grid_thw"][0])
    np.testing.assert_array_equal(patches, theirs["pixel_values"])


@settings(max_examples=300)
@given(height=st.integers(1, 20000), width=st.integers(1, 20000), pixels=st.integers(1, 3000))
def test_smart_resize_is_that_of_transformers(height, width, pixels):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    limits = ImageSettings(min_pixels=784, max_pixels=784 * pixels)
    try:
        expected = theirs(height, width, 28, limits.min_pixels, limits.max_pixels)
    except ValueError:
        with pytest.raises(UserError, match="200 times"):
            smart_resize(height, width, 28, limits)
    else:
        assert smart_resize(height, width, 28, limits) == expected


def test_settings_are_read_in_both_forms():
    old = ImageSettings.from_dict({"min_pixels": 1, "max_pixels": 2, "image_mean": [0.1, 0.2, 0.3]})
    assert (old.min_pixels, old.max_pixels, old.mean) == (1, 2, (0.1, 0.2, 0.3))
    new = ImageSettings.from_dict({"size": {"shortest_edge": 3, "longest_edge": 4}})
    assert (new.min_pixels, new.max_pixels) == (3, 4)


def test_windows_and_tokens_counted_by_hand():
    # 140 x 252 px are 5 x 9 tokens; windows of 4 x 4 tokens: 2 down, 3 across.
    assert grid_tokens((10, 18), CONFIG) == 45
    assert num_windows(140, 252, CONFIG) == 6


def test_an_images_identity_is_its_pixels_and_its_shape():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert image_hash(image) == image_hash(np.asfortranarray(image)) == image_hash(image.copy())
    others = [image.reshape(3, 2, 3), image[::-1], image[:1], np.where(image == 17, 16, image)]
    assert len({image_hash(image), *map(image_hash, others)}) == 5


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    extra=st.integers(0, 2),
)
def test_every_patch_is_in_its_window_once(sizes, extra):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (28 * h, 28 * w, 3), dtype=np.uint8) for h, w in sizes]
    windows = max(num_windows(*i.shape[:2], CONFIG) for i in images) + extra
    batch, slots = vision_batch(images, CONFIG, windows=windows, rows=len(images) + extra)
    flat = batch.patches.reshape(-1, 4, 3 * 14 * 14)
    coords = batch.coords.reshape(-1, 4, 2)
    valid = batch.valid.reshape(-1, 4)
    per_row = windows * 16
    for row, (image, own, (h, w)) in enumerate(zip(images, slots, sizes, strict=True)):
        patches, _ = cut_patches(image, CONFIG)
        np.testing.assert_array_equal(flat[own], patches.reshape(-1, 4, 3 * 14 * 14))
        assert valid[own].all() and len(set(own)) == h * w
        assert (own // per_row == row).all()
        # The patches of a token are a 2 x 2 square at twice its place; a window is 8 x 8 patches.
        token = np.stack(np.divmod(np.arange(h * w), w), -1)
        square = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
        np.testing.assert_array_equal(coords[own], 2 * token[:, None] + square)
        window = (own % per_row) // 16
        expected = (token[:, 0] // 4) * -(-w // 4) + token[:, 1] // 4
        np.testing.assert_array_equal(window, expected)
    assert valid.sum() == 4 * sum(map(len, slots))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((28, 30, 3), np.uint8), "multiples of 28"),
        (np.zeros((0, 28, 3), np.uint8), "multiples of 28"),
        (np.zeros((28, 28, 3), np.float32), "must be uint8"),
        (np.zeros((28, 28, 4), np.uint8), "must be uint8"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        prepare_image(image, CONFIG)


def test_what_does_not_fit_is_refused():
    prepared = [prepare_image(np.zeros((28, 28 * 5, 3), np.uint8), CONFIG)] * 2
    patches, grids = [p for p, _ in prepared], [g for _, g in prepared]
    with pytest.raises(UserError, match="2 windows; the rows have only 1"):
        pack_patches(patches, grids, CONFIG, windows=1)
    with pytest.raises(UserError, match="2 images do not fit into 1 rows"):
        pack_patches(patches, grids, CONFIG, rows=1)
