"""Finds a Hugging Face checkpoint, and writes the files beside its weights: all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig, read_config_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
GENERATION_FILE = "generation_config.json"


def resolve(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local directory of a checkpoint: itself, or the snapshot of a hub id (downloaded when not cached).

    Args:
        path_or_id: a directory, or `organisation/name` on the hub.
        revision: branch, tag or commit of the hub id.

    Raises:
        UserError: neither a directory nor a repository that can be reached.
    """
    path = Path(path_or_id)
    if path.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} is for hub ids; {path} is a directory")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_id), revision=revision, allow_patterns=_WANTED))
    except HFValidationError as error:
        raise UserError(f"{path_or_id}: no such directory, and not a hub id (organisation/name)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"{path_or_id}: no such directory, and not on the hub{at} ({reason})") from error


_WANTED = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]


@contextlib.contextmanager
def complete_directory(target: str | Path) -> Iterator[Path]:
    """A temporary directory next to `target` that becomes `target` when the block ends without an error.

    Raises UserError when `target` exists and is not an empty directory, or its parent cannot be written. On
    any error, the temporary directory is removed and `target` is as it was.
    """
    target = Path(target).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists; name a new directory, or move that one away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror})") from error
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        os.rename(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{target}: cannot be written ({error.strerror}); nothing was left there") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_side_files(
    directory: Path,
    config: Qwen25VLConfig,
    dtype: Any,
    *,
    source: Path | None,
    tokenizer: Path,
    chat_template: str,
) -> None:
    """Write everything but the weights.

    Args:
        directory: where they are written.
        config: of the model; dtype: of the weights, as config.json states it.
        source: directory the model came from: its files are copied, fields of its config.json that we do not
            know are kept; None when it has never been a Hugging Face checkpoint.
        tokenizer: directory of the tokenizer's files.
        chat_template: used when the tokenizer's own has no place for images.
    """
    _write_json(directory / "config.json", _config_json(config, dtype, source))
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, directory / name)
    if not any("vision_start" in text for text in _templates(directory)):
        _write_json(directory / "chat_template.json", {"chat_template": chat_template})
    defaults = {GENERATION_FILE: _generation_json(config), PROCESSOR_FILES[0]: _preprocessor_json(config)}
    for name in (GENERATION_FILE, *PROCESSOR_FILES):
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
        elif name in defaults:
            _write_json(directory / name, defaults[name])


def _config_json(config: Qwen25VLConfig, dtype: Any, source: Path | None) -> dict[str, Any]:
    own = {**config.to_dict(), "torch_dtype": np.dtype(dtype).name}
    if source is None or not (source / "config.json").is_file():
        return own
    theirs = read_config_json(source)
    return own if "text_config" in theirs else {**theirs, **own}


def _generation_json(config: Qwen25VLConfig) -> dict[str, Any]:
    eos = config.eos_token_id
    eos = list(eos) if isinstance(eos, tuple) else [eos]
    if config.bos_token_id is not None and config.bos_token_id not in eos:
        eos.append(config.bos_token_id)  # Qwen's <|endoftext|> ends a text, begins one and pads
    return {
        "bos_token_id": config.bos_token_id,
        "pad_token_id": config.bos_token_id,
        "eos_token_id": eos,
        "do_sample": True,
        "temperature": 1.0,
    }


def _preprocessor_json(config: Qwen25VLConfig) -> dict[str, Any]:
    from memocr_jax.models.images import ImageSettings

    settings = ImageSettings()
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": settings.min_pixels,
        "max_pixels": settings.max_pixels,
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.spatial_merge_size,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def _templates(directory: Path) -> Iterator[str]:
    """Chat templates that a checkpoint's files hold."""
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        if (directory / name).is_file():
            tree = json.loads((directory / name).read_text(encoding="utf-8"))
            yield str(tree.get("chat_template") or "")
    if (directory / "chat_template.jinja").is_file():
        yield (directory / "chat_template.jinja").read_text(encoding="utf-8")


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
