"""The model benchmark runs both sides on the same weights and inputs, and refuses to time a wrong model."""

from __future__ import annotations

import json

import pytest

from benchmarks import model as bench
from memocr_jax.core.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import dataclasses

    small = dataclasses.replace(
        bench.SMALL,
        text=dataclasses.replace(
            bench.SMALL.text,
            vocab_size=384,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=6,
            mrope_section=(2, 3, 3),
        ),
        vision=dataclasses.replace(
            bench.SMALL.vision,
            depth=2,
            hidden_size=64,
            intermediate_size=112,
            num_heads=4,
            out_hidden_size=96,
            fullatt_block_indexes=(1,),
        ),
        image_token_id=370,
        video_token_id=371,
        vision_start_token_id=372,
        vision_end_token_id=373,
        bos_token_id=374,
        eos_token_id=375,
    )
    directory = tmp_path_factory.mktemp("bench")
    bench.make_checkpoint(directory, small)
    return directory


def test_every_part_is_timed(checkpoint, tmp_path, capsys):
    out = tmp_path / "result.json"
    sizes = ["--rows", "2", "--length", "40", "--image-tokens", "3", "5", "--new-tokens", "4"]
    bench.main(["--hf", str(checkpoint), *sizes, "--repeats", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["largest_logit_difference"] < 2e-4
    assert set(result["results"]) == {"forward", "forward_backward", "forward_backward_remat", "decode"}
    for times in result["results"].values():
        assert times["torch_s"] > 0 and times["jax_s"] > 0
        assert times["ratio"] == pytest.approx(times["torch_s"] / times["jax_s"])


def test_a_wrong_model_is_not_timed(checkpoint, monkeypatch):
    monkeypatch.setattr(bench._JaxSide, "logits", lambda self: 1.0)
    setting = bench.ModelSetting(1, 40, (3, 5), 2, 1, "float32")
    with pytest.raises(UserError, match="nothing was timed"):
        bench.compare(checkpoint, setting)


def test_a_row_that_cannot_hold_its_image(checkpoint):
    with pytest.raises(UserError, match="--length is 10; the image alone needs 17 tokens"):
        bench.main(["--hf", str(checkpoint), "--length", "10", "--image-tokens", "3", "5"])


def test_shapes_without_weights_and_utilisation_where_the_peak_is_known(
    checkpoint, tmp_path, monkeypatch, capsys
):
    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.models.flops import vision_flops

    monkeypatch.setattr(bench, "peak_flops", lambda kind: 1e12)
    sizes = ["--rows", "1", "--length", "24", "--image-tokens", "2", "3", "--new-tokens", "2"]
    bench.main(["--shape", str(checkpoint), *sizes, "--repeats", "1"])
    result = json.loads(capsys.readouterr().out)
    config = Qwen25VLConfig.from_file(checkpoint)
    setting = bench.ModelSetting(1, 24, (2, 3), 2, 1, "float32")
    # By hand: a token's matrices once, pairs of a causal row, logits of every position, and the image.
    matrices = 2 * (96 * (96 + 2 * 32 + 96) + 3 * 96 * 160)
    decoder = 2 * (24 * matrices + 4 * 96 * (24 * 25 // 2))
    by_hand = decoder + 2 * 96 * 384 * 24 + vision_flops(config, 6 * 4)
    assert bench._forward_flops(config, setting) == pytest.approx(by_hand)
    train = result["results"]["forward_backward"]
    assert train["mfu"] == pytest.approx(3 * bench._forward_flops(config, setting) / (1e12 * train["jax_s"]))
    assert train["torch_mfu"] == pytest.approx(train["mfu"] / train["ratio"])
    with pytest.raises(UserError, match="give one of them"):
        bench.main(["--shape", str(checkpoint), "--hf", str(checkpoint)])
