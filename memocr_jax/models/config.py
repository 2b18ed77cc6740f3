"""Shapes and constants of a Qwen2.5-VL model, read from and written to Hugging Face's `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memocr_jax.core.errors import UserError

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
MODEL_TYPE = "qwen2_5_vl"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder: grouped-query attention with QKV bias, M-RoPE, SwiGLU (arXiv 2502.13923, section 2)."""

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    """Rotary frequencies that turn with the temporal, the row and the column position, in this order."""
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: windowed attention with a few full-attention blocks (arXiv 2502.13923, table 1)."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 3584
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    """Side of an attention window, in pixels."""
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    """Blocks whose patches see the whole image."""
    tokens_per_second: int = 4
    rope_theta: float = 1e4
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_features(self) -> int:
        """Numbers in one patch: channels x frames x patch x patch, in this order."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one image token."""
        return self.spatial_merge_size**2

    @property
    def token_px(self) -> int:
        """Side of one image token, in pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_tokens(self) -> int:
        """Side of a window, in image tokens (rounded down, as upstream does)."""
        return self.window_size // self.token_px

    @property
    def window_patches(self) -> int:
        """Patch slots of one window."""
        return self.window_tokens**2 * self.merge_unit


@dataclasses.dataclass(frozen=True)
class Qwen25VLConfig:
    """A whole model. `from_dict` reads both layouts of `config.json`; `to_dict` writes the published one."""

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig(out_hidden_size=TextConfig.hidden_size)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645

    def __post_init__(self):
        text, vision = self.text, self.vision
        _divides("num_attention_heads", text.num_attention_heads, "hidden_size", text.hidden_size)
        _divides(
            "num_key_value_heads", text.num_key_value_heads, "num_attention_heads", text.num_attention_heads
        )
        _divides("vision_config.num_heads", vision.num_heads, "vision_config.hidden_size", vision.hidden_size)
        if 2 * sum(text.mrope_section) != text.head_dim:
            raise UserError(
                f"mrope_section {list(text.mrope_section)} adds up to {sum(text.mrope_section)}; "
                f"it must be half of the head size {text.head_dim}"
            )
        if vision.head_dim % 4:
            raise UserError(
                f"vision_config: hidden_size / num_heads is {vision.head_dim}; it must be a multiple of 4"
            )
        if vision.out_hidden_size != text.hidden_size:
            raise UserError(
                f"vision_config.out_hidden_size is {vision.out_hidden_size}, but hidden_size is "
                f"{text.hidden_size}; image features must be as wide as the decoder"
            )
        if vision.window_tokens < 1:
            raise UserError(
                f"vision_config.window_size is {vision.window_size} px; "
                f"it must be at least one image token of {vision.token_px} px"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str = "config.json") -> Qwen25VLConfig:
        """Read `config.json` as transformers 4 (text fields at the top) or 5 (`text_config`) writes it.

        Raises UserError for another architecture and for features that no released Qwen2.5-VL uses.
        """
        if config.get("model_type") != MODEL_TYPE:
            raise UserError(
                f"{source}: model_type is {config.get('model_type')!r}; only {MODEL_TYPE!r} can be loaded"
            )
        text = dict(config.get("text_config") or config)
        vision = dict(config.get("vision_config") or {})
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        _refuse_unsupported(text, vision, rope, source)

        def get(tree: Mapping[str, Any], *names: str) -> Any:
            """The first of `names` that is set, here or at the top (where transformers 4 puts them)."""
            found = [place[n] for n in names for place in (tree, config) if place.get(n) is not None]
            return found[0] if found else None

        text_values = {f.name: get(text, f.name) for f in dataclasses.fields(TextConfig)}
        text_values["mrope_section"] = rope.get("mrope_section")
        text_values["rope_theta"] = rope.get("rope_theta") or get(text, "rope_theta")
        text_values["tie_word_embeddings"] = bool(
            config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        )
        vision_values = {f.name: vision.get(f.name) for f in dataclasses.fields(VisionConfig)}
        vision_values["rope_theta"] = (vision.get("rope_parameters") or {}).get("rope_theta")
        eos = get(text, "eos_token_id")
        own = {
            name: config.get(name)
            for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        }
        return cls(
            text=TextConfig(**_plain(text_values)),
            vision=VisionConfig(**_plain(vision_values)),
            **_plain(own),
            bos_token_id=get(text, "bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Qwen25VLConfig:
        """Read a `config.json`. Raises UserError when it cannot be read or is of another architecture."""
        return cls.from_dict(read_config_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The published layout of `config.json` (transformers 4): what vLLM, SGLang and transformers read."""
        text = dataclasses.asdict(self.text)
        vision = dataclasses.asdict(self.vision)
        section = text.pop("mrope_section")
        if vision.pop("rope_theta") != VisionConfig.rope_theta:  # readers before transformers 5 fix it
            vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": self.vision.rope_theta}
        del vision["rms_norm_eps"]  # a constant of the architecture, not a field of the file
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            **text,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "rope_scaling": {"type": "mrope", "mrope_section": list(section)},
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_id)
            if isinstance(self.eos_token_id, tuple)
            else self.eos_token_id,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "vision_config": {
                "model_type": MODEL_TYPE,
                "hidden_act": "silu",
                **vision,
                "fullatt_block_indexes": list(self.vision.fullatt_block_indexes),
                "in_chans": self.vision.in_channels,
                "spatial_patch_size": self.vision.patch_size,
            },
        }


def read_config_json(path: str | Path) -> dict[str, Any]:
    """The `config.json` at `path` (a file, or a directory that holds one) as a dictionary."""
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}, not a JSON object")
    return config


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set, with lists as tuples, because the dataclasses are hashable."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def _divides(name: str, value: int, whole_name: str, whole: int) -> None:
    if value < 1 or whole % value:
        raise UserError(f"{name} is {value}; it must divide {whole_name}, which is {whole}")


def _refuse_unsupported(text: Mapping, vision: Mapping, rope: Mapping, source: str) -> None:
    """Raise UserError for settings that this port lacks and that would silently give other numbers."""
    for name, activation in (("hidden_act", text), ("vision_config.hidden_act", vision)):
        if activation.get("hidden_act", "silu") != "silu":
            raise UserError(f"{source}: {name} is {activation['hidden_act']!r}; only 'silu' is supported")
    if "sliding_attention" in (text.get("layer_types") or ()) or text.get("use_sliding_window"):
        raise UserError(f"{source}: use_sliding_window is on; set it to false (no released model uses it)")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise UserError(f"{source}: rope type is {kind!r}; only 'mrope' (or 'default') is supported")
