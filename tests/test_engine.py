"""The rollout engine against the slow obvious way: one sequence at a time, the whole prefix every time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memocr_jax.config import EngineConfig, MeshConfig, SamplingConfig
from memocr_jax.engine import Engine, PromptGroup, image_grid, image_rows
from memocr_jax.images import num_windows
from memocr_jax.rng import row_key
from memocr_jax.rows import PackedRows
from memocr_jax.sampling import sample_tokens
from memocr_jax.sharding import make_mesh
from memocr_jax.types import Stop

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95)
NEW = 9


@pytest.fixture(scope="module")
def engine(small_model, tiny_mesh):
    graphdef, params = small_model.on(tiny_mesh)
    config = EngineConfig(groups=4, length_multiple=16, decode_segment=4)
    return Engine(graphdef, small_model.config, tiny_mesh, config, small_model.eos_ids), params


def ids(rng, n):
    return rng.integers(8, 200, n).astype(np.int32)


def group(seed, prefix=11, suffixes=(3, 5, 2), image=None):
    """A group of prompts; with an image (height, width in tokens) its placeholders are inside the prefix."""
    rng = np.random.default_rng(seed)
    parts = [ids(rng, prefix)]
    pixels = None
    if image:
        pixels = rng.integers(0, 256, (28 * image[0], 28 * image[1], 3), dtype=np.uint8)
        parts += [np.array([202] + [200] * (image[0] * image[1]) + [203], np.int32), ids(rng, 2)]
    return PromptGroup(
        np.concatenate(parts),
        tuple(ids(rng, n) for n in suffixes),
        tuple(row_key(0, "test", seed, k) for k in range(len(suffixes))),
        pixels,
    )


@functools.cache
def _next_logits(graphdef):
    def logits(params, tokens, positions, segments, image_slots, vision, last):
        model = nnx.merge(graphdef, params)
        features = None if vision is None else model.encode_images(vision)
        embeds = model.embed(tokens, None if vision is None else image_slots, features)
        return model.head(model.hidden(embeds, positions, segments)[:, last])

    return jax.jit(logits)


def obvious(engine, params, prompt_group, k, max_new, sampling):
    """Sample sibling k alone: recompute the whole sequence for every token."""
    config = engine.model_config
    windows = (
        num_windows(*prompt_group.image.shape[:2], config.vision) if prompt_group.image is not None else 0
    )
    vision, slots = image_rows([prompt_group.image], 1, windows, config)
    prompt = np.concatenate([prompt_group.prefix, prompt_group.suffixes[k]])
    sequence, logps = list(prompt), []
    for position in range(max_new):
        packed = PackedRows.empty(1, 64)
        grid = image_grid(prompt_group.image, config)
        packed.place(0, np.array(sequence, np.int32), [], [], slots[0], grid, config)
        logits = _next_logits(engine.graphdef)(
            params,
            packed.tokens,
            packed.mrope_pos,
            packed.segments,
            packed.image_slots,
            vision,
            len(sequence) - 1,
        )
        token, logp = sample_tokens(
            logits, jnp.asarray(prompt_group.keys[k])[None], jnp.int32(position), sampling, engine.eos_ids
        )
        sequence.append(int(token[0]))
        logps.append(float(logp[0]))
        if sequence[-1] in engine.eos_ids:
            break
    return sequence[len(prompt) :], logps


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([group(1), group(2, prefix=17, suffixes=(1, 9, 4))], id="two groups"),
        pytest.param([group(3, suffixes=(4,))], id="group of one"),
        pytest.param([group(4, suffixes=(2, 3)), group(5, suffixes=(6,))], id="unequal groups"),
        pytest.param(
            [group(6, image=(2, 3), suffixes=(3, 5)), group(7, image=(1, 4), suffixes=(2, 2))], id="images"
        ),
    ],
)
def test_equals_the_obvious_way_token_by_token(engine, groups):
    engine, params = engine
    results = engine.generate(params, groups, NEW, SAMPLING)
    for prompt_group, completions in zip(groups, results, strict=True):
        assert len(completions) == len(prompt_group.suffixes)
        for k, completion in enumerate(completions):
            tokens, logps = obvious(engine, params, prompt_group, k, NEW, SAMPLING)
            assert completion.tokens.tolist() == tokens, "sharing the prefix changed what is sampled"
            np.testing.assert_allclose(completion.sampler_logp, logps, atol=1e-4)
            assert completion.stop == (Stop.EOS if tokens[-1] in engine.eos_ids else Stop.LENGTH)
            assert len(tokens) <= NEW


def test_context_matters_in_these_tests(engine):
    """Guards the tests above: if the prefix or the image did not matter, they could not fail."""
    engine, params = engine
    one = group(6, image=(2, 3), suffixes=(3,))
    other_prefix = PromptGroup(np.roll(one.prefix, 1), one.suffixes, one.keys, one.image)
    other_image = PromptGroup(one.prefix, one.suffixes, one.keys, 255 - one.image)
    tokens = [
        engine.generate(params, [g], NEW, SAMPLING)[0][0].sampler_logp[0]
        for g in (one, other_prefix, other_image)
    ]
    assert len({round(float(t), 4) for t in tokens}) == 3


def test_a_sample_depends_on_nothing_else_in_the_batch(engine, small_model, tiny_mesh):
    engine, params = engine
    groups = [group(seed, prefix=5 + 3 * seed, suffixes=(3, 2 + seed)) for seed in range(7)]
    reference = engine.generate(params, groups, NEW, SAMPLING)
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = engine.generate(params, [groups[i] for i in order], NEW, SAMPLING)
    # Other buckets, other batches, other decoding segments.
    other = Engine(engine.graphdef, small_model.config, tiny_mesh, EngineConfig(7, 64, 4, 64), engine.eos_ids)
    rebuilt = other.generate(params, groups, NEW, SAMPLING)
    for i in range(7):
        for k in range(2):
            expected = reference[i][k].tokens.tolist()
            assert shuffled[order.index(i)][k].tokens.tolist() == expected
            assert rebuilt[i][k].tokens.tolist() == expected


def test_four_devices_sample_the_same(engine, small_model):
    engine, params = engine
    groups = [group(seed) for seed in range(3)]
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    graphdef, sharded = small_model.on(mesh)
    spread = Engine(graphdef, small_model.config, mesh, engine.config, engine.eos_ids)
    for ours, theirs in zip(
        engine.generate(params, groups, NEW, SAMPLING),
        spread.generate(sharded, groups, NEW, SAMPLING),
        strict=True,
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert a.tokens.tolist() == b.tokens.tolist()
            np.testing.assert_allclose(a.sampler_logp, b.sampler_logp, atol=1e-4)


def test_minimum_length_is_kept_and_counts_are_reported(engine):
    engine, params = engine
    before = engine.sampled_tokens
    seen = []
    sampling = SamplingConfig(temperature=0, min_new_tokens=NEW)
    groups = [group(seed) for seed in range(5)]
    results = engine.generate(params, groups, NEW, sampling, lambda done, total: seen.append((done, total)))
    assert all(len(c.tokens) == NEW for completions in results for c in completions)
    assert engine.sampled_tokens - before == 5 * 3 * NEW
    assert seen == [(done, 5) for done in range(1, 6)]
