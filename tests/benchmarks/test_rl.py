"""`python -m benchmarks.rl`: every part runs and says what the issue asks for, on tiny sizes."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import rl, rl_growth, rl_rollout
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig
from render.errors import CommandError

MODEL = Qwen25VLConfig(
    text=TextConfig(
        vocab_size=384,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        mrope_section=(2, 3, 3),
        rms_norm_eps=1e-6,
    ),
    vision=VisionConfig(depth=1, hidden_size=64, intermediate_size=112, num_heads=4, out_hidden_size=96),
    image_token_id=370,
    video_token_id=371,
    vision_start_token_id=372,
    vision_end_token_id=373,
    bos_token_id=374,
    eos_token_id=375,
)
SETTING = rl_rollout.RolloutSetting(
    prefix=12, own=4, new=3, siblings=(2,), groups=2, decode_rows=3, decode_prompt=9, decode_new=4
)
ONCE = SimpleNamespace(repeats=1)


def test_sampling_with_and_without_a_shared_prefix():
    result = rl_rollout.rollout_results(ONCE, SETTING, MODEL)["shared_prefix"]["rollout"]["K2"]
    assert result["rows"] == 4 and result["differing_rows"] == 0
    assert result["ratio"] == pytest.approx(result["unshared_s"] / result["shared_s"])


def test_decoding_against_transformers():
    result = rl_rollout.decode_results(ONCE, SETTING, MODEL)["decode"]
    assert result["same_tokens"] == 1
    assert result["ratio_vs_transformers"] == result["greedy"]["ratio"]
    assert result["greedy"]["ratio_with_prefill"] > 0 and result["sampled"]["jax_tokens_per_s"]


def test_the_sampler_s_logp_is_the_trainer_s():
    gaps = rl_rollout.logp_results(ONCE, SETTING, MODEL)["logp_gap"]
    assert gaps["float32"]["tokens"] == 2 * 2 * 3
    assert gaps["float32"]["largest"] < 1e-4
    assert gaps["float32"]["largest"] < gaps["bfloat16"]["largest"] < 0.2


def test_growth_measures_each_setting_once(monkeypatch):
    seen = []
    monkeypatch.setattr(rl_growth, "_measure", lambda config: seen.append(config) or {"step_s": 1.0})
    growth = rl_growth.growth_results(ONCE)["growth"]
    assert [row["siblings"] for row in growth["siblings"]] == [4, 8, 16]
    assert [row["chunks"] for row in growth["chunks"]] == [2, 4, 8, 16]
    assert len(seen) == 3 + 3 + 1  # the base is in every list
    assert {c.data.max_chunks for c in seen} == {2, 4, 8, 16}


def test_parts_are_merged_into_one_object(monkeypatch, capsys, tmp_path):
    parts = {
        "rollout": {"shared_prefix": {"rollout": {"K2": 1}}},
        "train": {"shared_prefix": {"train": {"K2": 2}}},
    }
    monkeypatch.setattr(rl, "run", lambda part, args: parts[part])
    out = tmp_path / "rl.json"
    rl.main(["--parts", "rollout", "train", "--out", str(out)])
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert result["shared_prefix"] == {"rollout": {"K2": 1}, "train": {"K2": 2}}
    assert set(result["seconds"]) == {"rollout", "train"} and result["machine"]["cores"] >= 1
    with pytest.raises(ValueError, match="two parts"):
        rl.merge({"a": 1}, {"a": 2})
    with pytest.raises(CommandError, match="--repeats is 0"):
        rl.main(["--repeats", "0"])
