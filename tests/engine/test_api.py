"""from_pretrained, logits, generate and the processor against transformers'."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memocr_jax
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.processor import Processor
from memocr_jax.models.tokenizer import SMALL_TOKENIZER, load_tokenizer


@pytest.fixture(scope="module")
def checkpoint(references, tmp_path_factory):
    """The configuration "grouped" with a tokenizer, as a user's directory."""
    reference = references("grouped")
    directory = tmp_path_factory.mktemp("user") / "hf"
    shutil.copytree(reference.directory, directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SMALL_TOKENIZER / name, directory / name)
    return reference, directory


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return memocr_jax.from_pretrained(checkpoint[1], dtype="float32")


def test_logits_of_the_processors_arrays(checkpoint, loaded, make_batch):
    reference, _ = checkpoint
    batch = make_batch(reference.config)
    with torch.no_grad():
        expected = reference.model(**{k: torch.tensor(v) for k, v in batch.items()}).logits.numpy()
    ours = memocr_jax.logits(loaded[0], **batch)
    assert ours.dtype == np.float32 and ours.shape == expected.shape
    valid = batch["attention_mask"].astype(bool)
    np.testing.assert_allclose(ours[valid], expected[valid], atol=2e-4)


def test_logits_of_text_without_mask(checkpoint, loaded):
    reference, _ = checkpoint
    ids = np.random.default_rng(0).integers(0, 300, (2, 9))
    with torch.no_grad():
        expected = reference.model(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(memocr_jax.logits(loaded[0], ids), expected, atol=2e-4)


def test_greedy_generation_is_that_of_transformers(checkpoint, loaded, make_batch):
    reference, _ = checkpoint
    batch = make_batch(reference.config)
    # transformers generates from left-padded prompts only.
    order = np.argsort(batch["attention_mask"], axis=1, kind="stable")
    left = {
        k: np.take_along_axis(batch[k], order, 1)
        for k in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    batch |= left
    with torch.no_grad():
        expected = reference.model.generate(
            **{k: torch.tensor(v) for k, v in batch.items()},
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=303,
        ).numpy()
    ours = memocr_jax.generate(loaded[0], **batch, max_new_tokens=12, pad_token_id=303)
    np.testing.assert_array_equal(ours, expected)


def test_a_stop_token_ends_its_row_only(loaded):
    ids = np.random.default_rng(1).integers(0, 300, (3, 6))
    free = memocr_jax.generate(loaded[0], ids, max_new_tokens=8, eos_token_id=())
    stop = int(free[1, 6 + 2])  # the third new token of row 1
    out = memocr_jax.generate(loaded[0], ids, max_new_tokens=8, eos_token_id=stop, pad_token_id=9)
    for row in range(3):
        new, until = out[row, 6:], free[row, 6:].tolist()
        length = until.index(stop) + 1 if stop in until else 8
        assert new[:length].tolist() == until[:length]
        assert (new[length:] == 9).all()


def test_sampling_is_seeded_and_does_not_depend_on_padding(loaded):
    ids = np.random.default_rng(2).integers(0, 300, (2, 7))
    options = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9, "eos_token_id": ()}
    one = memocr_jax.generate(loaded[0], ids, seed=1, **options)
    np.testing.assert_array_equal(one, memocr_jax.generate(loaded[0], ids, seed=1, **options))
    assert (one != memocr_jax.generate(loaded[0], ids, seed=2, **options)).any()
    padded = np.concatenate([ids, np.full((2, 3), 4)], axis=1)
    mask = np.arange(10) < np.full((2, 1), 7)
    again = memocr_jax.generate(loaded[0], padded, mask, seed=1, **options)
    np.testing.assert_array_equal(again[:, 10:], one[:, 7:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": np.zeros(1)}, "pixel_values_videos is given: videos are not supported"),
        ({"video_grid_thw": np.zeros(1)}, "video_grid_thw is given: videos"),
        ({"labels": np.zeros(1)}, "labels is not an argument"),
        ({"image_grid_thw": None}, "belong together"),
        ({"image_grid_thw": np.array([[2, 18, 4], *[[1, 2, 2]] * 4])}, "2 frames; videos are not supported"),
        (
            {"pixel_values": np.zeros((3, 1176))},
            r"pixel_values is \[3, 1176\]; image_grid_thw asks for \[300",
        ),
        ({"attention_mask": np.ones((1, 1))}, "attention_mask is"),
        ({"input_ids": np.full((1, 4), 320)}, "has id 320; the vocabulary has 320 entries"),
        ({"input_ids": np.full((1, 4), 311), "attention_mask": None}, "stands for a video"),
        (
            {"input_ids": np.full((1, 4), 5), "attention_mask": None},
            "5 images are given, but the ids have places",
        ),
        ({"input_ids": np.zeros((1, 4))}, "must be integers"),
    ],
)
def test_inputs_that_do_not_fit(loaded, make_batch, change, message):
    with pytest.raises(UserError, match=message):
        memocr_jax.logits(loaded[0], **{**make_batch(loaded[0].config), **change})


def test_generation_that_cannot_be(loaded):
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        memocr_jax.generate(loaded[0], np.ones((1, 3), int), max_new_tokens=0)
    with pytest.raises(UserError, match="row 1 of attention_mask is all padding"):
        memocr_jax.generate(loaded[0], np.ones((2, 3), int), np.array([[1, 1, 1], [0, 0, 0]]))


def test_importing_the_package_is_light():
    import subprocess
    import sys

    code = "import memocr_jax, sys; assert 'jax' not in sys.modules; memocr_jax.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'memocr_jax' has no attribute 'nothing'" in done.stderr


# The processor


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """Ours and transformers' over the small tokenizer."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class WithoutVideo(Qwen2_5_VLProcessor):
        """transformers' processor; its video part needs torchvision."""

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
            super().__init__(image_processor, tokenizer, None, chat_template)

        def check_argument_for_proper_class(self, name, argument):
            return (
                None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)
            )

    tokenizer = AutoTokenizer.from_pretrained(SMALL_TOKENIZER)
    theirs = WithoutVideo(Qwen2VLImageProcessorPil(), tokenizer, tokenizer.chat_template)
    small = load_tokenizer()
    config = dataclasses.replace(Qwen25VLConfig(), image_token_id=small.image_pad_id)
    return Processor(SMALL_TOKENIZER, config), theirs


parts = st.lists(
    st.one_of(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), st.integers(0, 2)), max_size=5
)


@settings(max_examples=40)
@given(
    conversations=st.lists(st.lists(parts, min_size=1, max_size=3), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
)
def test_conversations_become_the_arrays_of_transformers(processors, conversations, side):
    ours, theirs = processors
    rng = np.random.default_rng(0)
    images, messages = [], []
    for conversation in conversations:
        messages.append([])
        for turn, contents in enumerate(conversation):
            content = []
            for part in contents:
                if isinstance(part, int):
                    images.append(
                        rng.integers(0, 256, [(40, 90, 3), (120, 30, 3), (56, 56, 3)][part], np.uint8)
                    )
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": part})
            messages[-1].append({"role": ("user", "assistant")[turn % 2], "content": content})
    prompts = [ours.apply_chat_template(m, add_generation_prompt=True) for m in messages]
    assert prompts == [theirs.apply_chat_template(m, add_generation_prompt=True) for m in messages]
    expected = theirs(
        text=prompts, images=images or None, padding=True, padding_side=side, return_tensors="np"
    )
    got = ours(prompts, images, padding_side=side)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_placeholders_and_images_must_match(processors):
    with pytest.raises(UserError, match="1 image placeholders, but 0 images"):
        processors[0]("<|image_pad|>")
    with pytest.raises(UserError, match="videos are not supported"):
        processors[0]("<|video_pad|>")
    with pytest.raises(UserError, match="videos was given: videos are not supported"):
        processors[0]("x", videos=[1])
