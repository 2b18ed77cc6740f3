"""The one way to open a model: the directory of a run, a Hugging Face directory, or a hub id.

`find` says where the weights are and which model they belong to, before any is read. `open_model` loads them
with all that belongs to the model (tokenizer, prompts, page, lengths); `from_pretrained` gives the bare model
and its processor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.prompts import Templates, load_templates, templates_of
from memocr_jax.agent.system import System, build_system
from memocr_jax.config import Config, MeshConfig, from_tree, load_config, to_tree, validate
from memocr_jax.core.errors import UserError, nearest
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import abstract_like, make_mesh, param_shardings
from memocr_jax.engine import Engine
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_files import GENERATION_FILE, resolve
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.images import ImageSettings
from memocr_jax.models.processor import Processor, read_json
from memocr_jax.models.qwen25_vl import Qwen25VL, abstract_model
from memocr_jax.models.safetensors_dir import TensorFiles
from memocr_jax.models.tokenizer import SMALL_TOKENIZER
from memocr_jax.runs.checkpoint import Meta, open_checkpoint, theme_of
from memocr_jax.runs.run_place import CHECKPOINTS
from render.theme import PIXEL_FIELDS, with_theme_text

if TYPE_CHECKING:
    from memocr_jax.agent.agent import PageRenderer

Settings = Mapping[str, Mapping[str, Any]]
"""Fields of the configuration by section."""

HABITS_FILE = "memocr.json"
"""File in a Hugging Face directory with the lengths, page and prompts of the model's training."""
_HABITS = {
    "agent": ("memory_format", "draft_max_new_tokens", "read_max_new_tokens", "budget_tokens"),
    "data": ("chunk_tokens",),
    "render": ("theme_css", "width_px", *PIXEL_FIELDS),
    "eval": ("temperature", "top_p"),
}
_NO_TRAINING = {"train": {"row_layout": "aligned"}}
"""Settings that only training needs for some `model.attention`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights that were found: where they are, and the model that they belong to."""

    directory: Path
    """The run's directory, or the one in Hugging Face's layout (of a hub id, its local snapshot)."""
    model: Qwen25VLConfig
    meta: Meta | None = None
    """The description in the run's checkpoint; None for a Hugging Face directory."""

    @property
    def items(self) -> Path:
        """The folder of the run's checkpoint."""
        return self.directory / CHECKPOINTS / str(self.meta.step)

    @property
    def config(self) -> Config:
        """The run's configuration. Raises UserError when this version does not understand it."""
        return load_config(self.directory / "config.yaml")

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer's files."""
        return self.directory if self.meta is None else Path(self.config.tokenizer.path or SMALL_TOKENIZER)

    @property
    def compute_dtype(self) -> str:
        """float32 or bfloat16: what the run computes in, or what the published weights are stored in."""
        if self.meta is not None:
            return self.config.model.dtype
        with TensorFiles(self.directory) as files:
            stored = files.info(files.names()[0]).dtype.name
        return "float32" if stored == "float32" else "bfloat16"

    def load(self, abstract: nnx.State, mesh: Mesh, item: str = "params", **options: Any) -> nnx.State:
        """Read the weights onto a mesh, in the types of `abstract` (`abstract_model`).

        Args:
            item: the tree of the run's checkpoint, "params" or "adapters".
            options: `report`, as `hf_weights.load_params` takes it, for a Hugging Face directory.

        Raises:
            UserError: a file that is missing or damaged, or weights of another shape.
        """
        if self.meta is None:
            dtype = jax.tree.leaves(abstract)[0].dtype
            return load_params(self.directory, self.model, mesh, dtype, **options)
        with open_checkpoint(self.directory, self.meta.step) as (checkpoints, step):
            target = abstract_like(abstract, param_shardings(abstract, mesh))
            return checkpoints.restore(step, **{item: target})[item]


def find_run(run_dir: str | Path, step: int | None = None) -> Source:
    """The run's checkpoint of `step`, default the newest. Raises UserError when there is none."""
    with open_checkpoint(run_dir, step) as (checkpoints, step):
        meta = checkpoints.meta(step)
    model = Qwen25VLConfig.from_dict(meta.model, f"checkpoint {step} of {run_dir}")
    return Source(Path(run_dir).absolute(), model, meta)


def find_hf(path_or_id: str | Path, revision: str | None = None) -> Source:
    """Weights in Hugging Face's layout; those of a hub id are downloaded. Raises UserError."""
    directory = resolve(path_or_id, revision)
    return Source(directory, Qwen25VLConfig.from_file(directory))


def find(path_or_id: str | Path, *, revision: str | None = None, step: int | None = None) -> Source:
    """The weights of a run's directory, a Hugging Face directory, or a hub id.

    Args:
        revision: branch, tag or commit of a hub id.
        step: of a run's checkpoint, default the newest.

    Raises:
        UserError: nothing is there, or a revision or a step of something that has none.
    """
    path = Path(path_or_id)
    if (path / "config.yaml").is_file():
        if revision is not None:
            raise UserError(f"revision {revision!r} is for hub ids; {path} is the directory of a run")
        return find_run(path, step)
    if step is not None:
        raise UserError(f"step {step} is for the directory of a run; {path_or_id} is none (no config.yaml)")
    return find_hf(path_or_id, revision)


def from_pretrained(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = "bfloat16",
    mesh: Mesh | None = None,
    **options: Any,
) -> tuple[Qwen25VL, Processor]:
    """Load a Qwen2.5-VL checkpoint (3B, 7B, 32B, 72B, MemOCR-7B, a run of ours) and its processor.

    Args:
        path_or_id: a directory, or a hub id with its `revision`.
        dtype: type of parameters and activations, "bfloat16" or "float32".
        mesh: devices the model is spread over (`sharding.make_mesh`), default the first device.
        options: further arguments of `Qwen25VL`, such as `remat`.

    Raises:
        UserError: not found, another architecture, or a checkpoint that does not fit its config.json.
    """
    source = find(path_or_id, revision=revision)
    config = source.model
    eos = read_json(source.directory / GENERATION_FILE).get("eos_token_id")
    if eos is not None:
        config = dataclasses.replace(config, eos_token_id=tuple(eos) if isinstance(eos, list) else eos)
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    dtype = jnp.dtype(dtype)
    graphdef, abstract = abstract_model(config, dtype=dtype, param_dtype=dtype, mesh=mesh, **options)
    return nnx.merge(graphdef, source.load(abstract, mesh)), Processor(source.tokenizer, config)


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model with its weights, and how it is used: prompts, page, lengths (`config`)."""

    name: str
    system: System
    params: nnx.State
    images: ImageSettings = dataclasses.field(default_factory=ImageSettings)
    """How images of any size are prepared; pages need no preparation."""

    @property
    def config(self) -> Config:
        return self.system.config

    def engine(self) -> Engine:
        system = self.system
        eos_ids = system.tokenizer.eos_ids
        return Engine(system.graphdef, system.model, system.mesh, self.config.engine, eos_ids)

    def agent(self, engine: Engine, renderer: PageRenderer) -> Agent:
        """The memory agent over an engine and a renderer."""
        system = self.system
        return Agent(
            engine,
            system.tokenizer,
            renderer,
            self.config.agent,
            self.config.run.seed,
            Stopwatch(),
            system.templates,
        )


def open_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    **settings: Mapping[str, Any],
) -> OpenModel:
    """Load a model and everything that belongs to it.

    Args:
        path_or_id, revision, step: as `find` takes them. Of a run, its tokenizer, prompts and theme are used;
            of a Hugging Face directory, those that `save_habits` left there.
        mesh: devices the model is spread over (`sharding.make_mesh`), default the first device.
        settings: fields of the configuration that replace the model's own, by section:
            `agent={"draft_max_new_tokens": 512}, render={"theme": "small"}`.

    Raises:
        UserError: nothing there, settings that cannot be, a checkpoint that does not fit.
    """
    source = find(path_or_id, revision=revision, step=step)
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    if source.meta is not None:
        config, templates = _run_config(source, settings), None
    else:
        config, templates = _hf_config(source, settings)
    system = _light(build_system(config, source.model, mesh))
    if templates is not None:
        system = dataclasses.replace(system, templates=templates)
    params = source.load(system.abstract_params, mesh)
    images = ImageSettings.from_dict(read_json(source.directory / "preprocessor_config.json"))
    return OpenModel(Path(path_or_id).absolute().name, system, params, images)


def _run_config(source: Source, settings: Settings) -> Config:
    """The configuration of a run's model."""
    # Settings for the run's own machines do not apply to this one.
    elsewhere = {"engine": {"devices": 0, "tensor": 1}, "model": {"attention": "xla"}}
    config = _changed(source.config, elsewhere | _NO_TRAINING)
    config = dataclasses.replace(config, render=theme_of(source.meta, config.render))
    return _changed(config, settings)


def _hf_config(source: Source, settings: Settings) -> tuple[Config, Templates | None]:
    """The configuration of a model in Hugging Face's layout, and its prompts, if it has some."""
    files = {"path": str(source.directory)}
    model = files | {"init": "pretrained", "dtype": source.compute_dtype}
    config = _changed(Config(), {"model": model, "tokenizer": files} | _NO_TRAINING)
    where = source.directory / HABITS_FILE
    habits = read_json(where)
    templates = habits.pop("templates", {})
    if set(habits) - set(_HABITS) or not all(isinstance(part, dict) for part in habits.values()):
        raise UserError(f"{where}: sections are {', '.join([*_HABITS, 'templates'])}")
    config = _changed(_changed(config, habits, str(where)), settings)
    if not templates or config.prompts.path:
        return config, None
    return config, templates_of(templates, str(where))


def _light(system: System) -> System:
    """The system with parameters in the compute type: without training half the memory is enough."""
    dtype = jnp.dtype(system.config.model.dtype)
    options = {"dtype": dtype, "mesh": system.mesh, "attention": system.config.model.attention}
    graphdef, abstract = abstract_model(system.model, param_dtype=dtype, **options)
    return dataclasses.replace(system, graphdef=graphdef, abstract_params=abstract)


def _changed(config: Config, settings: Settings, source: str = "settings") -> Config:
    """The configuration with some fields replaced; a theme's name replaces a theme's text."""
    tree = to_tree(config)
    for section, fields in settings.items():
        if section not in tree or not isinstance(fields, dict):
            raise UserError(
                f"{source}: {section} is no section of the configuration{nearest(section, [*tree])}"
            )
        tree[section] = tree[section] | fields
    render = settings.get("render", {})
    if "theme" in render and "theme_css" not in render:
        tree["render"]["theme_css"] = ""
    changed = from_tree(Config, tree, source)
    if changed.model.path:
        validate(changed)
    return changed


def run_habits(config: Config, meta: Meta) -> dict[str, Any]:
    """The contents of `HABITS_FILE` for a run's checkpoint.

    Raises UserError when the run's prompts are missing, RenderError when its theme is.
    """
    render = with_theme_text(theme_of(meta, config.render))
    tree = to_tree(dataclasses.replace(config, render=render))
    habits = {section: {name: tree[section][name] for name in names} for section, names in _HABITS.items()}
    return habits | {"templates": dataclasses.asdict(load_templates(config.prompts.path))}


def save_habits(directory: str | Path, habits: dict[str, Any]) -> None:
    """Write `HABITS_FILE` beside exported weights, so that the model is used as it was trained."""
    text = json.dumps(habits, ensure_ascii=False, indent=1)
    (Path(directory) / HABITS_FILE).write_text(text + "\n", encoding="utf-8")
