"""Scaled-down checkpoints made and saved by transformers, and the inputs they are compared on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

IMAGE, VIDEO, START, END = 310, 311, 312, 313
TEXT_TOKENS = 300

_TEXT = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "mrope_section": [1, 1, 2],
}
_VISION = {
    "depth": 4,
    "hidden_size": 40,
    "intermediate_size": 36,
    "num_heads": 5,
    "fullatt_block_indexes": [1, 3],
}

# Dimensions within a configuration differ pairwise, so that a swapped axis is an error, not luck.
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied": {"tie": True, "text": {"num_hidden_layers": 2}},
    "one_kv_head_per_head": {
        "text": {
            "hidden_size": 60,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "mrope_section": [2, 1, 3],
        }
    },
    "one_kv_head": {
        "text": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "mrope_section": [2, 3, 3],
        }
    },
    "uneven_mrope": {
        "text": {"hidden_size": 96, "mrope_section": [5, 1, 2], "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    },
    "all_blocks_full": {"vision": {"depth": 3, "fullatt_block_indexes": [0, 1, 2]}},
    "no_block_full": {"vision": {"depth": 2, "fullatt_block_indexes": []}},
    "window_of_2_tokens": {"vision": {"window_size": 56, "fullatt_block_indexes": [0, 2]}},
    "window_of_6_tokens": {"vision": {"window_size": 168}},
    "window_not_a_multiple": {"vision": {"window_size": 100, "fullatt_block_indexes": [3]}},
    "wide_merger": {
        "text": {"hidden_size": 72, "mrope_section": [2, 2, 2]},
        "vision": {"hidden_size": 112, "num_heads": 7},
    },
    "merge_of_3": {"vision": {"spatial_merge_size": 3, "window_size": 84}},
    "small_patches": {"vision": {"patch_size": 6, "window_size": 48, "temporal_patch_size": 1}},
}


def hf_config(name: str) -> Any:
    """transformers' configuration of one of CONFIGS."""
    from transformers import Qwen2_5_VLConfig

    changes = CONFIGS[name]
    text = {**_TEXT, **changes.get("text", {})}
    section = text.pop("mrope_section")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": section}
    text |= {"bos_token_id": 301, "eos_token_id": 302, "pad_token_id": None}
    vision = {**_VISION, **changes.get("vision", {}), "out_hidden_size": text["hidden_size"]}
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=changes.get("tie", False),
    )


@dataclasses.dataclass
class Reference:
    """transformers' model and what it was saved as."""

    name: str
    model: Any
    directory: Path

    @property
    def config(self) -> Any:
        from memocr_jax.models.config import Qwen25VLConfig

        return Qwen25VLConfig.from_file(self.directory)


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """name -> Reference, made when first asked for."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(1)  # tiny products: more threads only wait for each other
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            torch.manual_seed(sorted(CONFIGS).index(name))
            model = Qwen2_5_VLForConditionalGeneration(hf_config(name)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    # Larger than at initialisation, so that attention is far from uniform; norms and biases
                    # away from ones and zeros, so that leaving one out shows.
                    if parameter.ndim > 1:
                        parameter.normal_(0, 0.15)
                    else:
                        parameter.add_(0.2 * torch.randn_like(parameter))
            directory = tmp_path_factory.mktemp(name)
            model.save_pretrained(directory)
            made[name] = Reference(name, model, directory)
        return made[name]

    return get


def mixed_batch(config: Any) -> dict[str, np.ndarray]:
    """A batch as transformers' processor returns it: text only, one tall image, several images of different
    sizes (wide, one token), images first and last; rows padded on the left and on the right."""
    from memocr_jax.models.images import prepare_image

    rng = np.random.default_rng(7)
    token = config.vision.token_px
    sizes = {1: [(9, 2)], 2: [(2, 7), (1, 1), (3, 4)], 3: [(5, 6)]}  # tokens: height, width
    rows: list[list[int]] = []
    patches, grids = [], []
    for row in range(4):
        ids = list(rng.integers(0, TEXT_TOKENS, 4 + 3 * row)) if row != 3 else []
        for height, width in sizes.get(row, []):
            image = rng.integers(0, 256, (height * token, width * token, 3), dtype=np.uint8)
            pixels, grid = prepare_image(image, config.vision)
            patches.append(pixels)
            grids.append((1, *grid))
            ids += [START, *[IMAGE] * (height * width), END]
            if row != 3:
                ids += list(rng.integers(0, TEXT_TOKENS, 3))
        rows.append(ids)
    length = max(map(len, rows)) + 2
    ids, mask = np.full((4, length), 303, np.int64), np.zeros((4, length), np.int64)
    for row, tokens in enumerate(rows):
        start = length - len(tokens) if row % 2 else 0  # odd rows padded on the left
        ids[row, start : start + len(tokens)], mask[row, start : start + len(tokens)] = tokens, 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": np.concatenate(patches),
        "image_grid_thw": np.array(grids, np.int64),
        "mm_token_type_ids": (ids == IMAGE).astype(np.int64),
    }


@pytest.fixture(scope="session")
def make_batch():
    return mixed_batch
