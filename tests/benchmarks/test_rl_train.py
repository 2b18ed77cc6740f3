"""The benchmark of the training step: all numbers are there, and a wrong step is not timed."""

import dataclasses
from types import SimpleNamespace

import pytest

from benchmarks import rl_train as bench
from benchmarks.model import make_checkpoint
from memocr_jax.core.errors import UserError


def test_both_sides_do_the_same_step_and_are_timed(tmp_path):
    text = dataclasses.replace(
        bench.MODEL.text,
        vocab_size=384,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        mrope_section=(2, 3, 3),
    )
    vision = dataclasses.replace(bench.MODEL.vision, depth=1, out_hidden_size=96, fullatt_block_indexes=(0,))
    ids = ("image", "video", "vision_start", "vision_end")
    special = {f"{name}_token_id": 370 + i for i, name in enumerate(ids)}
    tiny = dataclasses.replace(
        bench.MODEL, text=text, vision=vision, **special, bos_token_id=374, eos_token_id=375
    )
    make_checkpoint(tmp_path, tiny)
    setting = bench.TrainingSetting(
        prefix=12, suffix=6, siblings=(3,), torch_siblings=3, groups=2, micro_batch_rows=3, repeats=1
    )
    # Raises if PyTorch and the two ways to pack a group disagree in loss or gradient.
    result = bench.compare(tmp_path, setting)
    shared = result["shared_prefix"]["train"]["K3"]
    # Two groups: 12 + 3 * 6 slots each, against 3 rows of 18 each.
    assert (shared["shared_tokens"], shared["unshared_tokens"]) == (60, 108)
    assert shared["ratio"] == pytest.approx(shared["unshared_s"] / shared["shared_s"])
    step = result["train_step"]
    assert step["ratio_vs_torch"] == pytest.approx(step["torch_s"] / step["jax_s"])
    assert step["machine"]["cores"] >= 1


def test_a_wrong_step_is_not_timed():
    def side(loss, norm):
        return SimpleNamespace(step=lambda: {"loss/total": loss, "grad/norm": norm})

    bench._require_equal("both", side(0.5, 2.0), side(0.5001, 2.001), "float32")
    for other in (side(0.51, 2.0), side(0.5, 2.1)):
        with pytest.raises(UserError, match=r"both: .* nothing was timed"):
            bench._require_equal("both", side(0.5, 2.0), other, "float32")
