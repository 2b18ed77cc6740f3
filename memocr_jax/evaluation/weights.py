"""Which weights are evaluated, and what else the answers of an evaluation depend on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import yaml
from flax import nnx

from memocr_jax.agent.open import Source, find_run
from memocr_jax.agent.system import System
from memocr_jax.config import Config, answer_settings, evaluation_sets
from memocr_jax.data.prepared import MANIFEST
from memocr_jax.runs.checkpoint import require_same_model, theme_of
from render.settings import RenderSettings
from render.theme import theme_css


class Weights:
    """Which weights are evaluated: a checkpoint's, or those that the configuration names."""

    def __init__(self, config: Config, checkpoint: str | None, step: int | None):
        self.name = checkpoint or config.model.path
        self.source = None if checkpoint is None else find_run(checkpoint, step)
        self.config = config if self.source is None else _with_theme(config, self.source)

    @property
    def step(self) -> int | None:
        """The checkpoint's step; None without a checkpoint."""
        return None if self.source is None else self.source.meta.step

    def require_same_model(self, system: System) -> None:
        """Raise UserError when the checkpoint is of another model than the configuration names."""
        if self.source is not None:
            require_same_model(self.source.meta, system.model, self.name)

    def identity(self) -> dict[str, Any]:
        """What identifies these weights, as far as it is known without reading them."""
        if self.source is None:
            return {"weights": f"{self.config.model.path} ({self.config.model.init})"}
        path = self.source.items / "_CHECKPOINT_METADATA"
        saved = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        return {"checkpoint step": self.step, "checkpoint saved": saved}

    def load(self, system: System) -> nnx.State:
        """The weights on the system's mesh."""
        if self.source is None:
            return system.initial_params()
        return self.source.load(system.abstract_params, system.mesh)


def _with_theme(config: Config, source: Source) -> Config:
    """The settings with the checkpoint's theme, unless they name another theme than its run did."""
    # As it is, not `source.config`: a run of another version may have fields that are unknown here.
    text = (source.directory / "config.yaml").read_text("utf-8")
    render = (yaml.safe_load(text) or {}).get("render") or {}
    if config.render.theme_css or config.render.theme != render.get("theme", RenderSettings.theme):
        return config
    return dataclasses.replace(config, render=theme_of(source.meta, config.render))


def fingerprint(config: Config, weights: dict[str, Any]) -> dict[str, Any]:
    """Everything that the answers depend on, by field name."""
    fields = {**weights, **answer_settings(config)}
    # A theme is its text, wherever that came from.
    css = hashlib.sha256(theme_css(config.render).encode()).hexdigest()[:16]
    fields = {**fields, "render.theme": css, "render.theme_css": ""}
    for i, (name, length, data) in enumerate(evaluation_sets(config)):
        where = f"eval.sets[{i}]"
        fields |= {f"{where}.name": name, f"{where}.length": length}
        fields |= answer_settings(data, f"{where}.data.", decide=True)
        for field in ("path", "validation_path", "pool_path"):
            fields[f"{where}.data.{field} (contents)"] = _contents(getattr(data, field))
    return fields


def _contents(path: str) -> str:
    """A short mark of what a data file or prepared folder holds."""
    file = Path(path) / MANIFEST if Path(path).is_dir() else Path(path)
    if not path or not file.is_file():
        return ""
    if file.name == MANIFEST:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return f"{file.stat().st_size} bytes"
