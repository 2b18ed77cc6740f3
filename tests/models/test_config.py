"""config.json in both layouts, and what is refused."""

from __future__ import annotations

import json

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig, TextConfig, VisionConfig

SMALL = Qwen25VLConfig(
    text=TextConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        mrope_section=(1, 1, 2),
        rope_theta=5e5,
        tie_word_embeddings=True,
    ),
    vision=VisionConfig(
        depth=4, hidden_size=40, num_heads=5, out_hidden_size=48, fullatt_block_indexes=(1, 3)
    ),
    eos_token_id=(7, 8),
)


def test_published_layout_round_trip():
    tree = json.loads(json.dumps(SMALL.to_dict()))
    assert "text_config" not in tree
    assert Qwen25VLConfig.from_dict(tree) == SMALL


def test_transformers_reads_ours_and_we_read_its(tmp_path):
    from transformers import Qwen2_5_VLConfig

    theirs = Qwen2_5_VLConfig.from_dict(SMALL.to_dict())
    assert theirs.text_config.hidden_size == 48 and theirs.tie_word_embeddings
    theirs.save_pretrained(tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    assert "text_config" in tree  # transformers 5 nests
    assert Qwen25VLConfig.from_file(tmp_path) == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; only 'qwen2_5_vl'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window is on"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [1, 1, 2]}}, "rope type is 'yarn'"),
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}},
            "adds up to 3; it must be half of .* 8",
        ),
        ({"num_attention_heads": 7}, "num_attention_heads is 7; it must divide hidden_size, which is 48"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4; it must divide num_attention_heads"),
        ({"vision_config": {"out_hidden_size": 49}}, "out_hidden_size is 49, but hidden_size is 48"),
        ({"vision_config": {"out_hidden_size": 48, "window_size": 20}}, "window_size is 20 px"),
        ({"vision_config": {"out_hidden_size": 48, "hidden_size": 30, "num_heads": 5}}, "multiple of 4"),
    ],
)
def test_what_cannot_be_loaded_is_named(change, message):
    with pytest.raises(UserError, match=message):
        Qwen25VLConfig.from_dict({**SMALL.to_dict(), **change})


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        Qwen25VLConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Qwen25VLConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        Qwen25VLConfig.from_file(tmp_path)
