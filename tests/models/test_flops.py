"""Operation counts against hand counts and against what XLA counts in a compiled program."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.flops import decoder_flops, head_flops, peak_flops, row_pairs, vision_flops

ROOT_7B = "configs/models/qwen2.5-vl-7b"


def test_pairs_of_a_packed_row():
    # Prefix of 3: 1 + 2 + 3 = 6. A sibling of 2 sees the prefix and itself: 3 + 1, 3 + 2 = 9; one of 1: 4.
    assert row_pairs(3, [2, 1]) == 6 + 9 + 4
    assert row_pairs(0, []) == 0


def test_decoder_of_7b_by_hand(request):
    config = Qwen25VLConfig.from_file(request.config.rootpath / ROOT_7B)
    # A layer: q 3584 x 3584, k and v 3584 x 512 each, o 3584 x 3584, three of 3584 x 18944.
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    # Per (query, key) pair 28 heads of 128: a product for the score and one for the value, 2 operations each.
    by_hand = 28 * (2 * layer * 1000 + 4 * 28 * 128 * 500_500)
    assert decoder_flops(config, 1000, row_pairs(1000, [])) == by_hand
    assert head_flops(config, 10) == 10 * 2 * 3584 * 152064


def cost(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_counts_agree_with_the_compiled_program(small_model, tiny_mesh):
    graphdef, params = small_model.on(tiny_mesh)
    config, layers = small_model.config, small_model.config.text.num_hidden_layers
    length = 256

    def forward(params, embeds, positions, segments):
        return nnx.merge(graphdef, params).hidden(embeds, positions, segments)

    arguments = (
        jnp.zeros((1, length, config.text.hidden_size)),
        jnp.zeros((3, 1, length), jnp.int32),
        jnp.zeros((1, length), jnp.int32),
    )
    # XLA counts the body of a scan once, and scores that the mask hides: queries in chunks of 128 see all
    # keys up to their chunk's end.
    pairs = 128 * 128 + 128 * 256
    expected = decoder_flops(config, length, pairs) / layers
    measured = cost(forward, params, *arguments)
    assert measured == pytest.approx(expected, rel=0.25)  # norms, softmax and rotation are counted there too
    assert measured > expected


def test_peaks_are_found_by_the_longest_name():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


def test_vision_of_7b_by_hand(request):
    config = Qwen25VLConfig.from_file(request.config.rootpath / ROOT_7B)
    patches = 4 * 512  # a page of 512 tokens
    block = 4 * 1280 * 1280 + 3 * 1280 * 3420
    merger = 5120 * 5120 + 5120 * 3584
    products = 2 * (32 * block + 1176 * 1280) * patches + 2 * merger * 512
    # 28 windowed blocks of 64 patches, 4 full ones.
    scores = 4 * 1280 * (28 * patches * 64 + 4 * patches * patches)
    assert vision_flops(config, patches) == products + scores
