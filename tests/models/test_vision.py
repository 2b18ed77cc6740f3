"""The vision tower over bytes and over several images in a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memocr_jax.models.images import num_windows, pack_patches, prepare_image, vision_batch


@pytest.fixture(scope="module")
def tower(small_model, tiny_mesh):
    graphdef, params = small_model.on(tiny_mesh)
    return small_model.config, jax.jit(lambda vision: nnx.merge(graphdef, params).encode_images(vision))


def pages(*sizes):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (28 * h, 28 * w, 3), dtype=np.uint8) for h, w in sizes]


def test_bytes_become_the_features_of_prepared_patches_bit_for_bit(tower):
    config, encode = tower
    images = pages((3, 5), (6, 2))
    prepared = [prepare_image(image, config.vision) for image in images]
    floats, slots = pack_patches([p for p, _ in prepared], [g for _, g in prepared], config.vision)
    bytes_, same = vision_batch(images, config.vision)
    assert bytes_.patches.dtype == np.uint8 and bytes_.patches.nbytes * 8 == floats.patches.nbytes
    for a, b in zip(slots, same, strict=True):
        ours, theirs = (
            encode(bytes_).reshape(-1, config.vision.out_hidden_size)[b],
            encode(floats).reshape(-1, config.vision.out_hidden_size)[a],
        )
        np.testing.assert_array_equal(ours, theirs)


def test_images_that_share_a_row_do_not_see_each_other(tower):
    config, encode = tower
    images = pages((5, 9), (2, 2), (4, 3), (7, 1))
    windows = sum(num_windows(*image.shape[:2], config.vision) for image in images)
    alone, own = vision_batch(images, config.vision)
    # Two rows: the first image between the two others, the last by itself.
    shared, slots = vision_batch(images, config.vision, windows=windows, rows=2, places=[0, 0, 0, 1])
    width = encode(alone).shape[-1]
    apart, together = (np.asarray(encode(batch)).reshape(-1, width) for batch in (alone, shared))
    for a, b in zip(own, slots, strict=True):
        np.testing.assert_allclose(together[b], apart[a], rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(together).all()
