"""A long document, a memory of it, answers off its page: MemOCR for one's own use.

    import memocr_jax
    with memocr_jax.MemoryAgent("runs/tiny") as agent:
        agent.read(text)
        print(agent.ask("Who wrote it?", budget=64))

The agent of training and evaluation (`rl/rollout.py`) with what it needs around it: a model to open, a memory
to keep. `ask` and `serve` are built on this file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memocr_jax.agent.agent import Agent, Memory, ReadRequest
from memocr_jax.agent.answers import boxed_answer
from memocr_jax.agent.prompts import MemoryFormat, load_templates, templates_of
from memocr_jax.agent.system import System, build_system
from memocr_jax.config import Config, MeshConfig, SamplingConfig, from_tree, load_config, to_tree, validate
from memocr_jax.core.errors import UserError, nearest
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.sharding import abstract_like, make_mesh, param_shardings
from memocr_jax.core.types import QaExample, TurnKind
from memocr_jax.data.contexts import split_chunks
from memocr_jax.engine import Engine
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.hf_files import resolve
from memocr_jax.models.hf_weights import load_params
from memocr_jax.models.images import ImageSettings
from memocr_jax.models.processor import read_json
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.models.safetensors_dir import TensorFiles
from memocr_jax.runs.checkpoint import Meta, open_checkpoint
from render import open_renderer
from render.files import write_atomically
from render.theme import PIXEL_FIELDS, with_theme_text
from render.types import MemoryPage
from render.views import fit

if TYPE_CHECKING:
    from flax import nnx

    from memocr_jax.agent.agent import Renderer

Settings = Mapping[str, Mapping[str, Any]]
"""Fields of the configuration by section."""

Progress = Callable[[int, int], None]
"""Told how many chunks are read, of how many."""

MEMORY_KIND = "memocr memory 1"
"""What a memory's file says it is."""

HABITS_FILE = "memocr.json"
"""In a Hugging Face directory: the lengths, the page and the prompts that the model was trained with."""
_HABITS = {
    "agent": ("memory_format", "draft_max_new_tokens", "read_max_new_tokens", "budget_tokens"),
    "data": ("chunk_tokens",),
    "render": ("theme_css", "width_px", *PIXEL_FIELDS),
    "eval": ("temperature", "top_p"),
}
_NO_TRAINING = {"train": {"row_layout": "aligned"}}
"""What training would need for some `model.attention`, and what does not matter here."""


@dataclasses.dataclass(frozen=True)
class Document:
    """What is kept of a document: the memory, and what is needed to go on with it. A value, no model."""

    text: str = ""
    """The memory itself, Markdown or HTML."""
    question: str = ""
    """What it was drafted for; empty means for whatever may be asked."""
    memory_format: MemoryFormat = "markdown"
    chunks: int = 0
    """Chunks read so far."""
    tokens: int = 0
    """Tokens read so far."""

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all. Raises UserError when that is impossible."""
        path = Path(path)
        text = json.dumps({"kind": MEMORY_KIND, **dataclasses.asdict(self)}, ensure_ascii=False, indent=1)
        try:
            write_atomically(path, text + "\n")
        except OSError as error:
            raise UserError(f"{path}: the memory cannot be written ({error.strerror})") from error

    @classmethod
    def load(cls, path: str | Path) -> Document:
        """Read what `save` wrote. Raises UserError for anything else."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: the memory cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON, so no memory that --save-memory wrote") from error
        if not isinstance(tree, dict) or tree.pop("kind", None) != MEMORY_KIND:
            raise UserError(f"{path}: its kind is not {MEMORY_KIND!r}: no memory that --save-memory wrote")
        return from_tree(cls, tree, str(path))


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was read off a page; as a string, the answer alone."""

    text: str
    """The contents of the last box, or the whole reply where there is none."""
    reply: str
    """Everything the model wrote."""
    image_tokens: int
    """Visual tokens of the view that it saw."""
    new_tokens: int
    """Tokens it wrote."""

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model with its weights, and how it is used: prompts, page, lengths (`config`)."""

    name: str
    system: System
    params: nnx.State
    images: ImageSettings = dataclasses.field(default_factory=ImageSettings)
    """How images of any size are made ready; pages need none of it."""

    @property
    def config(self) -> Config:
        return self.system.config

    def engine(self) -> Engine:
        system = self.system
        eos_ids = system.tokenizer.eos_ids
        return Engine(system.graphdef, system.model, system.mesh, self.config.engine, eos_ids)

    def agent(self, engine: Engine, renderer: Renderer) -> Agent:
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
        path_or_id: a run directory of ours (its checkpoint, tokenizer, prompts and theme), a Hugging Face
            directory, or a hub id with its `revision`.
        step: of a run's checkpoint, default the newest.
        mesh: devices the model is spread over (`sharding.make_mesh`), default the first device.
        settings: fields of the configuration that replace the model's own, by section:
            `agent={"draft_max_new_tokens": 512}, render={"theme": "small"}`.

    Raises:
        UserError: nothing there, settings that cannot be, a checkpoint that does not fit.
    """
    path = Path(path_or_id)
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    if (path / "config.yaml").is_file():
        if revision is not None:
            raise UserError(f"revision {revision!r} is for hub ids; {path} is the directory of a run")
        return _open_run(path, step, mesh, settings)
    if step is not None:
        raise UserError(f"step {step} is for the directory of a run; {path_or_id} is none (no config.yaml)")
    return _open_hf(path_or_id, revision, mesh, settings)


def _open_run(path: Path, step: int | None, mesh: Mesh, settings: Settings) -> OpenModel:
    with open_checkpoint(path, step) as (checkpoints, step):
        meta = checkpoints.meta(step)
        # How the run's own machines were used is nothing to this one.
        elsewhere = {"engine": {"devices": 0, "tensor": 1}, "model": {"attention": "xla"}}
        config = _changed(load_config(path / "config.yaml"), elsewhere | _NO_TRAINING)
        config = _changed(_with_theme(config, meta), settings)
        model = Qwen25VLConfig.from_dict(meta.model, f"checkpoint {step} of {path}")
        system = _light(build_system(config, model, mesh))
        target = abstract_like(system.abstract_params, param_shardings(system.abstract_params, mesh))
        params = checkpoints.restore(step, params=target)["params"]
    return OpenModel(path.absolute().name, system, params)


def _open_hf(path_or_id: str | Path, revision: str | None, mesh: Mesh, settings: Settings) -> OpenModel:
    directory = resolve(path_or_id, revision)
    files = {"path": str(directory)}
    with TensorFiles(directory) as tensors:
        dtype = tensors.info(tensors.names()[0]).dtype.name
    model = files | {"init": "pretrained", "dtype": "float32" if dtype == "float32" else "bfloat16"}
    config = _changed(Config(), {"model": model, "tokenizer": files} | _NO_TRAINING)
    habits = read_json(directory / HABITS_FILE)
    templates = habits.pop("templates", {})
    if set(habits) - set(_HABITS) or not all(isinstance(part, dict) for part in habits.values()):
        raise UserError(f"{directory / HABITS_FILE}: sections are {', '.join([*_HABITS, 'templates'])}")
    config = _changed(_changed(config, habits, str(directory / HABITS_FILE)), settings)
    system = _light(build_system(config, mesh=mesh))
    if templates and not config.prompts.path:
        where = str(directory / HABITS_FILE)
        system = dataclasses.replace(system, templates=templates_of(templates, where))
    params = load_params(directory, system.model, mesh, jnp.dtype(config.model.dtype))
    images = ImageSettings.from_dict(read_json(directory / "preprocessor_config.json"))
    return OpenModel(Path(path_or_id).absolute().name, system, params, images)


def _light(system: System) -> System:
    """The system with parameters in the compute type: nothing is learned here, so half the memory does."""
    dtype = jnp.dtype(system.config.model.dtype)
    options = {"dtype": dtype, "mesh": system.mesh, "attention": system.config.model.attention}
    graphdef, abstract = abstract_model(system.model, param_dtype=dtype, **options)
    return dataclasses.replace(system, graphdef=graphdef, abstract_params=abstract)


def _changed(config: Config, settings: Settings, source: str = "settings") -> Config:
    """The configuration with some fields replaced; a theme that is named counts instead of a text."""
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
    """What `HABITS_FILE` says of a run's checkpoint.

    Raises UserError when the run's prompts, RenderError when its theme cannot be found any more.
    """
    config = _with_theme(config, meta)
    tree = to_tree(dataclasses.replace(config, render=with_theme_text(config.render)))
    habits = {section: {name: tree[section][name] for name in names} for section, names in _HABITS.items()}
    return habits | {"templates": dataclasses.asdict(load_templates(config.prompts.path))}


def save_habits(directory: str | Path, habits: dict[str, Any]) -> None:
    """Write `HABITS_FILE` beside exported weights, so that the model is used as it was trained."""
    text = json.dumps(habits, ensure_ascii=False, indent=1)
    (Path(directory) / HABITS_FILE).write_text(text + "\n", encoding="utf-8")


def _with_theme(config: Config, meta: Meta) -> Config:
    """The configuration with the theme that a checkpoint remembers."""
    # Older checkpoints remember none: then the theme that the configuration names has to do.
    return _changed(config, {"render": {"theme_css": meta.theme_css}}) if meta.theme_css else config


def read_document(
    agent: Agent,
    params: nnx.State,
    document: Document,
    text: str,
    chunk_tokens: int,
    sampling: SamplingConfig,
    progress: Progress = lambda done, total: None,
) -> Document:
    """The document with `text` read into its memory, one drafting turn for each chunk.

    What is drafted depends on the seed, the memory so far and the number of the chunk, not on how many calls
    a text is spread over (cut between chunks). Raises UserError for a text without anything in it.
    """
    tokens = np.asarray(agent.tokenizer.encode(text), np.int32)
    if not text.strip():
        raise UserError("the document is empty: there is nothing to read")
    chunks = split_chunks(tokens, chunk_tokens)
    question = document.question or agent.templates.any_question
    for number, chunk in enumerate(chunks):
        progress(number, len(chunks))
        turn = QaExample("document", question, (chunk,), ())
        memories = agent.draft_memories(params, [turn], 1, sampling, document.chunks, [document.text])
        document = dataclasses.replace(
            document,
            text=memories[0].text,
            chunks=document.chunks + 1,
            tokens=document.tokens + len(chunk),
        )
    progress(len(chunks), len(chunks))
    return document


def ask_page(
    agent: Agent,
    params: nnx.State,
    page: MemoryPage,
    questions: Sequence[str],
    budget_tokens: int,
    sampling: SamplingConfig,
) -> list[Answer]:
    """Answers to questions off one view of a page; they share the view's computation."""
    asked = tuple((TurnKind.QA, question, ()) for question in questions)
    request = ReadRequest(Memory(0, 0, "", (), page), view(page, budget_tokens), asked)
    example = QaExample("document", "", (), ())
    readings = agent.read_pages(params, [example], [request], sampling, "ask")
    return [
        Answer(
            boxed_answer(reading.text) or reading.text.strip(),
            reading.text,
            reading.view_tokens,
            len(reading.turn.completion.tokens),
        )
        for reading in readings
    ]


def view(page: MemoryPage, budget_tokens: int) -> np.ndarray:
    """The page as an image u8[H, W, 3] of at most `budget_tokens` visual tokens. Raises UserError."""
    if budget_tokens < 1:
        raise UserError(f"budget is {budget_tokens} visual tokens; the smallest that works is 1")
    if page.pixels is None:
        raise UserError(f"the memory could not be drawn: {page.status} ({page.detail})")
    return fit(page.pixels, budget_tokens)


class MemoryAgent:
    """Reads a document into a memory, and answers questions off the memory's page.

    with MemoryAgent("runs/tiny") as agent:
        agent.read(text, question="Who wrote it?")
        agent.append(more)
        print(agent.ask("Who wrote it?", budget=64))
        agent.save("notes.json")
    """

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        **options: Any,
    ):
        """Open a model.

        Args:
            path_or_id, options: as `open_model` takes them.
            temperature, top_p: of sampling; temperature 0 is greedy. Default: as it is evaluated.

        Raises:
            UserError: as `open_model`.
        """
        self.model = open_model(path_or_id, **options)
        config = self.model.config
        self.sampling = SamplingConfig(
            temperature=config.eval.temperature if temperature is None else temperature,
            top_p=config.eval.top_p if top_p is None else top_p,
        )
        require_sampling(self.sampling)
        self.document = Document(memory_format=config.agent.memory_format)
        """What has been read."""
        self._renderer: Any = None
        self._agent = self.model.agent(self.model.engine(), self)

    @property
    def memory(self) -> str:
        """The text of the memory, empty when nothing was read."""
        return self.document.text

    def read(self, text: str, question: str = "", progress: Progress = lambda done, total: None) -> str:
        """Read a new document and return its memory; the one before is forgotten.

        `question` tells the model what to look for, as in training; without it, the memory is a general one.
        Raises UserError for an empty text.
        """
        config = self.model.config
        fresh = Document(question=question, memory_format=config.agent.memory_format)
        self.document = self._read(fresh, text, progress)
        return self.memory

    def append(self, text: str, progress: Progress = lambda done, total: None) -> str:
        """Read on: `text` follows what was read before. Returns the new memory."""
        self.document = self._read(self.document, text, progress)
        return self.memory

    def ask(self, question: str, budget: int | None = None) -> Answer:
        """Answer off the memory's page, seen at `budget` visual tokens (default: the model's own).

        Raises UserError when nothing was read, the page cannot be drawn or the budget is below 1.
        """
        budget = self.model.config.agent.budget_tokens if budget is None else budget
        return ask_page(self._agent, self.model.params, self.page(), [question], budget, self.sampling)[0]

    def page(self) -> MemoryPage:
        """The memory's page as drawn, before any budget. Raises UserError when nothing was read."""
        if not self.document.chunks:
            raise UserError("nothing was read yet: call read(text), or load(file)")
        return self.submit(self.memory).result()

    def page_image(self, budget: int | None = None) -> np.ndarray:
        """The page as the model sees it: u8[H, W, 3], at most `budget` visual tokens."""
        return view(self.page(), self.model.config.agent.budget_tokens if budget is None else budget)

    def save(self, path: str | Path) -> None:
        """Write the memory to a file (JSON). Raises UserError when that is impossible."""
        self.document.save(path)

    def load(self, path: str | Path) -> None:
        """Go on with a memory that `save` wrote. Raises UserError for anything else."""
        document = Document.load(path)
        own = self.model.config.agent.memory_format
        if document.memory_format != own:
            raise UserError(
                f"{path}: the memory is {document.memory_format}, the model writes {own}; "
                "set agent.memory_format, or use the model that wrote it"
            )
        self.document = document

    def submit(self, memory: str) -> Future[MemoryPage]:
        """The page of a memory. The renderer starts when it is first needed: reading needs none."""
        config = self.model.config
        if self._renderer is None:
            settings = dataclasses.replace(config.render, workers=config.render.workers or 1)
            self._renderer = open_renderer(settings, config.agent.memory_format)
        return self._renderer.submit(memory)

    def close(self) -> None:
        """Close the renderer. May be called again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> MemoryAgent:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _read(self, document: Document, text: str, progress: Progress) -> Document:
        chunk_tokens = self.model.config.data.chunk_tokens
        return read_document(
            self._agent, self.model.params, document, text, chunk_tokens, self.sampling, progress
        )


def require_sampling(sampling: SamplingConfig) -> None:
    """Raise UserError for values that cannot be sampled with."""
    if not 0 <= sampling.temperature <= 100:
        raise UserError(
            f"temperature is {sampling.temperature}; use 0 (greedy) or a value up to 100, such as 1"
        )
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p is {sampling.top_p}; use a probability above 0 and at most 1")
