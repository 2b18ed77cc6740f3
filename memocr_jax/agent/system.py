"""Builds the parts of a run from its configuration: tokenizer, model on its mesh, engine, agent."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.prompts import Templates, load_templates
from memocr_jax.config import Config
from memocr_jax.core.errors import UserError
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import (
    LocalCopy,
    local_mesh,
    make_mesh,
    own_rows,
    param_shardings,
    split_devices,
)
from memocr_jax.engine import Engine
from memocr_jax.models.attention import require_backend
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.qwen25_vl import abstract_model, init_params
from memocr_jax.models.safetensors_dir import TensorFiles
from memocr_jax.models.tokenizer import Tokenizer, load_tokenizer
from render import open_renderer
from render.settings import TOKEN_PX, RenderSettings


@dataclasses.dataclass(frozen=True)
class System:
    """The parts that do not change during a run."""

    config: Config
    tokenizer: Tokenizer
    templates: Templates
    model: Qwen25VLConfig
    mesh: jax.sharding.Mesh
    """The mesh of all processes, used by the update."""
    graphdef: nnx.GraphDef
    abstract_params: nnx.State
    """Shapes, types and logical axes."""
    sampler_mesh: jax.sharding.Mesh
    """The mesh of this process's own devices, used by rollouts."""
    sampler_params: LocalCopy
    """Copies parameters from `mesh` to `sampler_mesh`."""

    def initial_params(self) -> nnx.State:
        """The parameters that the run starts from; also its reference policy."""
        if self.config.model.init == "pretrained":
            return load_params(self.config.model.path, self.model, self.mesh, self.config.param_dtype)
        shardings = param_shardings(self.abstract_params, self.mesh)
        options = {"mesh": self.mesh, "param_dtype": self.config.param_dtype}
        return init_params(self.model, self.config.run.seed, shardings, **options)

    def engine(self) -> Engine:
        dtype = jnp.dtype(self.config.model.dtype)
        graphdef, _ = abstract_model(
            self.model, dtype=dtype, mesh=self.sampler_mesh, attention=self.config.model.attention
        )
        return Engine(graphdef, self.model, self.sampler_mesh, self.config.engine, self.tokenizer.eos_ids)

    @contextlib.contextmanager
    def agent(
        self,
        stopwatch: Stopwatch | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        render: RenderSettings | None = None,
    ) -> Iterator[Agent]:
        """The memory agent, with a renderer that is closed at the end. Missing Chromium is an error here.

        `render` replaces the configuration's section of that name (a checkpoint remembers its theme).
        """
        config = self.config
        with open_renderer(render or config.render, config.agent.memory_format) as renderer:
            yield Agent(
                self.engine(),
                self.tokenizer,
                renderer,
                config.agent,
                config.run.seed,
                stopwatch or Stopwatch(),
                self.templates,
                progress,
            )


def build_system(
    config: Config, model: Qwen25VLConfig | None = None, mesh: jax.sharding.Mesh | None = None
) -> System:
    """Load the tokenizer and lay out the model; no weights are read yet. Raises UserError.

    Args:
        model: its description where that is known (a checkpoint has it), default config.json of model.path.
        mesh: default the one that `config.mesh` describes, over all devices that train.
    """
    tokenizer = load_tokenizer(config.tokenizer.path)
    model = model or _model_config(config)
    _require_matching(model, tokenizer, config)
    rollout_devices, training_devices = split_devices(config.engine.devices)
    if mesh is None:
        mesh = make_mesh(config.mesh, training_devices)
    else:
        rollout_devices = mesh.local_devices
    own_rows(mesh)  # raises early what does not fit
    sampler_mesh = local_mesh(rollout_devices, config.engine.tensor)
    dtype = jnp.dtype(config.model.dtype)
    require_backend(config.model.attention, jax.default_backend(), config.model.dtype)
    options = {"param_dtype": config.param_dtype, "attention": config.model.attention}
    graphdef, abstract = abstract_model(model, dtype=dtype, mesh=mesh, **options)
    param_shardings(abstract, mesh)  # likewise
    sampler_params = LocalCopy(abstract, mesh, sampler_mesh, dtype)
    templates = load_templates(config.prompts.path)
    return System(config, tokenizer, templates, model, mesh, graphdef, abstract, sampler_mesh, sampler_params)


def parameter_count(params: nnx.State) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def _model_config(config: Config) -> Qwen25VLConfig:
    """Read model.path's config.json, and check first that the weights are there."""
    path = Path(config.model.path)
    if not path.exists():
        raise UserError(
            f"model.path is {str(path)!r}, which does not exist; name a Hugging Face directory, or a "
            "config.json with model.init: random"
        )
    if config.model.init == "pretrained":
        try:
            with TensorFiles(path):
                pass
        except UserError as error:
            raise UserError(f"model.path: {error}; for random weights set model.init to random") from error
    return Qwen25VLConfig.from_file(path)


def _require_matching(model: Qwen25VLConfig, tokenizer: Tokenizer, config: Config) -> None:
    """Raise UserError unless the model's vocabulary and control tokens are the tokenizer's."""
    where = f"model.path {config.model.path} and tokenizer.path {config.tokenizer.path or '(the small one)'}"
    if tokenizer.vocab_size > model.text.vocab_size:
        raise UserError(
            f"{where} do not fit: the tokenizer has {tokenizer.vocab_size} entries, the model's vocab_size "
            f"is {model.text.vocab_size}; use the tokenizer that the model was made with"
        )
    if model.vision.token_px != TOKEN_PX:
        raise UserError(
            f"model.path {config.model.path}: an image token is {model.vision.token_px} px wide there; pages "
            f"are fitted to tokens of {TOKEN_PX} px (patch_size 14, spatial_merge_size 2)"
        )
    pairs = {
        "image_token_id": (model.image_token_id, tokenizer.image_pad_id),
        "vision_start_token_id": (model.vision_start_token_id, tokenizer.vision_start_id),
        "vision_end_token_id": (model.vision_end_token_id, tokenizer.vision_end_id),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(
                f"{where} do not fit: {name} is {ours} in the model's config.json and {theirs} in the "
                "tokenizer; use the tokenizer that the model was made with"
            )
