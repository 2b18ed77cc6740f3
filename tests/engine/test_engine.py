"""The rollout engine against the slow obvious way: one sequence at a time, the whole prefix every time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memocr_jax.config import EngineConfig, MeshConfig, SamplingConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import row_key
from memocr_jax.core.sharding import make_mesh
from memocr_jax.core.types import Stop
from memocr_jax.engine import Engine, PromptGroup, PromptLimits
from memocr_jax.engine.pool import empty_pool
from memocr_jax.engine.run import PoolRun
from memocr_jax.engine.sampling import sample_tokens
from memocr_jax.models.images import image_grid, image_rows
from memocr_jax.models.packing import PackedRows, PlacedImage
from memocr_jax.models.qwen25_vl import abstract_model

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95)
NEW = 9


@pytest.fixture(scope="module")
def engine(small_model, tiny_mesh):
    graphdef, params = small_model.on(tiny_mesh)
    config = EngineConfig(groups=4, length_multiple=16, decode_segment=4)
    return Engine(graphdef, small_model.config, tiny_mesh, config, small_model.eos_ids), params


def ids(rng, n):
    return rng.integers(8, 200, n).astype(np.int32)


def picture(rng, height, width):
    """An image of so many tokens."""
    return rng.integers(0, 256, (28 * height, 28 * width, 3), dtype=np.uint8)


def shown(rng, sizes):
    """Images of (height, width) tokens, and the ids that stand for them, each followed by a word."""
    places = [token for h, w in sizes for token in [202] + [200] * (h * w) + [203, 9]]
    return tuple(picture(rng, *size) for size in sizes), np.array(places, np.int32)


def group(seed, prefix=11, suffixes=(3, 5, 2), images=(), suffix_images=None, **options):
    """A group of prompts; images are (height, width) in tokens, in the prefix or in each of the suffixes."""
    rng = np.random.default_rng(seed)
    pictures, places = shown(rng, images)
    own = [shown(rng, sizes) for sizes in suffix_images or [()] * len(suffixes)]
    return PromptGroup(
        np.concatenate([ids(rng, prefix), places, ids(rng, 2)]),
        tuple(
            np.concatenate([p, ids(rng, n)]).astype(np.int32) for (_, p), n in zip(own, suffixes, strict=True)
        ),
        tuple(row_key(0, "test", seed, k) for k in range(len(suffixes))),
        images=pictures,
        suffix_images=tuple(i for i, _ in own) if suffix_images else (),
        **options,
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
    images = [*prompt_group.prefix_images, *prompt_group.own_images[k]]
    vision, slots = image_rows(images, len(images), 4, config.vision) if images else (None, [])
    placed = [PlacedImage(s, image_grid(i, config.vision)) for s, i in zip(slots, images, strict=True)]
    prompt = np.concatenate([prompt_group.prefix, prompt_group.suffixes[k]])
    sequence, logps = list(prompt), []
    for position in range(max_new):
        packed = PackedRows.empty(1, 64)
        packed.place(0, np.array(sequence, np.int32), [], [], config, placed)
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
        pytest.param([group(4, suffixes=(2, 3)), group(5, suffixes=(6,))], id="a group of one too"),
        pytest.param(
            [group(6, images=[(2, 3)], suffixes=(3, 5)), group(7, images=[(1, 4)], suffixes=(2, 2))],
            id="images",
        ),
        pytest.param(
            [group(8, images=[(1, 2), (3, 1)], suffixes=(3, 4), suffix_images=[(), [(2, 2)]])],
            id="several images, one in a suffix",
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
            np.testing.assert_allclose(completion.sampler_logp, logps, rtol=1e-5, atol=1e-5)
            assert completion.stop == (Stop.EOS if tokens[-1] in engine.eos_ids else Stop.LENGTH)
            assert len(tokens) <= NEW


def test_an_image_is_computed_once_in_a_call(engine):
    engine, params = engine
    one, other = (group(seed, images=[(2, 3)], suffixes=(3, 5)) for seed in (6, 9))
    same = dataclasses.replace(other, images=(one.images[0].copy(),))
    before = engine.encoded_images
    results = engine.generate(params, [one, other, same], NEW, SAMPLING)
    assert engine.encoded_images - before == 2
    alone = engine.generate(params, [same], NEW, SAMPLING)[0]
    assert [c.tokens.tolist() for c in results[2]] == [c.tokens.tolist() for c in alone]


def test_context_matters_in_these_tests(engine):
    """Guards the tests above: if the prefix or the image did not matter, they could not fail."""
    engine, params = engine
    one = group(6, images=[(2, 3)], suffixes=(3, 5))
    other_prefix = dataclasses.replace(one, prefix=np.roll(one.prefix, 1))
    other_image = dataclasses.replace(one, images=(255 - one.images[0],))
    tokens = [
        engine.generate(params, [g], NEW, SAMPLING)[0][0].sampler_logp[0]
        for g in (one, other_prefix, other_image)
    ]
    assert len({round(float(t), 4) for t in tokens}) == 3


def test_a_sample_depends_on_nothing_else_in_the_batch(engine, small_model, tiny_mesh, monkeypatch):
    engine, params = engine
    groups = [group(seed, prefix=5 + 3 * seed, suffixes=(3, 2 + seed)) for seed in range(7)]
    # Rows that sample differently and end at different times keep each other company.
    change = dataclasses.replace
    groups = [change(g, max_new_tokens=6) if i != 6 else g for i, g in enumerate(groups)]
    groups[2] = change(groups[2], sampling=SamplingConfig(temperature=0), max_new_tokens=3)
    groups[5] = change(groups[5], sampling=SamplingConfig(temperature=0.7, top_k=5))
    inserts, moves = [], []

    def spy(name, seen):
        wrapped = getattr(PoolRun, name)

        def both(self, *args):
            seen.append(len(args[0]))
            return wrapped(self, *args)

        monkeypatch.setattr(PoolRun, name, both)

    spy("_insert", inserts)
    spy("_move", moves)
    # Seven groups through a pool of four: refilled while others go on, shrunk at the end.
    reference = engine.generate(params, groups, NEW, SAMPLING)
    assert sum(inserts) == 7 and len(inserts) > 1
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = engine.generate(params, [groups[i] for i in order], NEW, SAMPLING)
    # Other sizes of everything.
    config = EngineConfig(4, 64, 4, 3, pool_sizes=2, length_sizes=1, prefill_tokens=1)
    other = Engine(engine.graphdef, small_model.config, tiny_mesh, config, engine.eos_ids)
    moves.clear()
    rebuilt = other.generate(params, groups, NEW, SAMPLING)
    assert moves, "the pool never shrank: this test shows nothing about it"
    for i in range(7):
        for k in range(2):
            expected = reference[i][k]
            for completion in (shuffled[order.index(i)][k], rebuilt[i][k]):
                assert completion.tokens.tolist() == expected.tokens.tolist()
                np.testing.assert_allclose(completion.sampler_logp, expected.sampler_logp, atol=1e-4)
    assert len(reference[2][0].tokens) <= 3


def test_nothing_is_compiled_after_the_warm_up(small_model, tiny_mesh):
    graphdef, params = small_model.on(tiny_mesh)
    config = EngineConfig(4, 16, 4, 4, pool_sizes=2, length_sizes=1, prefill_tokens=100)
    engine = Engine(graphdef, small_model.config, tiny_mesh, config, small_model.eos_ids)
    draft = PromptLimits("draft", 2, prefix_tokens=24, suffix_tokens=8, max_new_tokens=6)
    read = PromptLimits("read", 1, prefix_tokens=24, suffix_tokens=4, max_new_tokens=4, windows=4)
    fits = engine.warm_up(params, [draft, read])
    assert [str(fit).partition(" at once")[0] for fit in fits] == [
        "draft: 8 rows (4 groups of 2)",
        "read: 4 rows (4 groups of 1)",
    ]
    compiled = engine.executables
    assert compiled >= 10
    rng = np.random.default_rng(3)
    for step in range(20):
        count, new = int(rng.integers(1, 7)), int(rng.integers(1, 7))
        drafts = [
            group(100 * step + i, int(rng.integers(1, 22)), rng.integers(1, 9, rng.integers(1, 3)))
            for i in range(count)
        ]
        reads = [
            group(100 * step + i, int(rng.integers(1, 8)), (int(rng.integers(1, 5)),), [(2, 1 + i % 3)])
            for i in range(1 + step % 3)
        ]
        engine.generate(params, drafts, new, SamplingConfig(temperature=1 + step / 10, top_p=0.9))
        engine.generate(params, reads, min(new, 4), SAMPLING)
        assert engine.executables == compiled, f"step {step} compiled something"
    engine.generate(params, [group(1, prefix=30, suffixes=(3, 3))], 6, SAMPLING)
    assert engine.executables > compiled, "a prompt beyond the limits must show in the counter"


def test_programs_are_lowered_from_shapes_alone(engine):
    engine, params = engine
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    text = PromptLimits("draft", 2, prefix_tokens=24, suffix_tokens=8, max_new_tokens=6)
    assert list(engine.lower(shapes, text)) == ["prefill", "decode"]
    before = engine.executables
    pages = engine.lower(shapes, dataclasses.replace(text, windows=4))
    assert list(pages) == ["vision", "prefill", "decode"] and engine.executables == before
    assert f"tensor<{2 * engine.config.groups}x6xi32>" in pages["decode"].as_text(), "tokens of all rows"


def test_the_cache_is_sized_from_memory(small_model, tiny_mesh):
    graphdef, _ = abstract_model(small_model.config, dtype=jnp.bfloat16, mesh=tiny_mesh)
    limits = PromptLimits("draft", 4, prefix_tokens=96, suffix_tokens=32, max_new_tokens=64)

    def engine(cache_gib):
        config = EngineConfig(16, prefill_tokens=256, cache_gib=cache_gib)
        return Engine(graphdef, small_model.config, tiny_mesh, config, small_model.eos_ids)

    free = engine(0).fits(limits)
    assert (free.groups, free.rows) == (16, 64)
    half = engine(free.gib / 2).fits(limits)
    assert half.groups < 16 and half.gib <= free.gib / 2 and half.rows == 4 * half.groups
    # What it says is what the arrays take, and the pool of 16 rows that follows.
    text = small_model.config.text
    pool = jax.eval_shape(
        functools.partial(
            empty_pool,
            64,
            32,
            siblings=4,
            prefix=96,
            capacity=96,
            max_new_tokens=64,
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            dtype=jnp.bfloat16,
            per_layer=False,
        )
    )
    keys_values = [getattr(pool.cache, f"{part}_{x}") for part in ("prefix", "suffix") for x in "kv"]
    slot = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    total = sum(x.size * 2 for x in keys_values) + 16 * (96 + 96) * slot
    assert free.gib * 2**30 == pytest.approx(total)
    small = engine(free.gib / 1000)
    with pytest.raises(UserError, match=r"engine\.cache_gib is .*one group of draft prompts .*at least"):
        small.fits(limits)
    # Said before anything is computed: there are no weights here.
    with pytest.raises(UserError, match=r"engine\.cache_gib"):
        small.generate(None, [group(1, prefix=500)], 64, SAMPLING)
    with pytest.raises(UserError, match="each sibling needs at least 1"):
        small.generate(None, [group(1, suffixes=(3, 0))], 64, SAMPLING)


def test_four_devices_sample_the_same(engine, small_model):
    engine, params = engine
    groups = [group(seed) for seed in range(3)]
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices())
    graphdef, sharded = small_model.on(mesh)
    # Also what an accelerator does: stacked layers, the weights as they are.
    spread = Engine(graphdef, small_model.config, mesh, engine.config, engine.eos_ids, decoding_copy=False)
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
    seen = []
    sampling = SamplingConfig(temperature=0, min_new_tokens=NEW)
    groups = [group(seed) for seed in range(5)]
    results = engine.generate(params, groups, NEW, sampling, lambda done, total: seen.append((done, total)))
    assert all(len(c.tokens) == NEW for completions in results for c in completions)
    assert seen == [(done, 5) for done in range(1, 6)]
