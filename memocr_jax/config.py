"""The configuration: frozen dataclasses, read from YAML, overridden on the command line, checked early.

Everything is checked here, before JAX, a tokenizer or a browser is imported. Numbers of the paper's recipe
(arXiv 2601.21468) are the defaults; `configs/` holds complete runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from memocr_jax.data.settings import DataConfig
from memocr_jax.errors import UserError, nearest
from render.errors import RenderError
from render.settings import RenderSettings


@dataclasses.dataclass(frozen=True)
class RunConfig:
    dir: str = ""
    """Where the run leaves everything; empty means runs/<name of the config file>."""
    seed: int = 0
    """Seed of every random stream of the run."""
    fresh: bool = False
    """Start over: what is in the run directory is moved aside instead of being continued."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """A Hugging Face directory (config.json and safetensors), or a config.json alone for random weights."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Where the weights come from: the directory, or the run's seed."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type. Parameters, norms, softmax and log-probabilities are float32 in either case."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    path: str = ""
    """A Hugging Face tokenizer directory; empty means the project's own small tokenizer."""


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    path: str = ""
    """A YAML file with prompt templates of your own (memocr_jax/prompts.py); empty means the project's."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    memory_format: Literal["markdown", "html"] = "markdown"
    """What the model writes its memory in; selects the prompt and the renderer's mode together."""
    draft_max_new_tokens: int = 2048
    """Longest memory, in tokens."""
    read_max_new_tokens: int = 2048
    """Longest answer, in tokens."""
    budget_tokens: int = 512
    """Visual tokens of the full view in training (objectives std and augM)."""
    low_res_factor: int = 4
    """The low-resolution view has this many times fewer pixels per side (objective augM)."""
    low_res_mode: Literal["shrink", "blur"] = "shrink"
    """`shrink`: fewer pixels and so fewer tokens, as in the paper; `blur`: blurred at equal size."""
    gap_fill_window_chars: int = 300
    """Length of the memory's text that a cloze shows (objective augQ)."""
    gap_fill_blanks: int = 3
    """Words that a cloze leaves out."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0
    """Divides the logits; 0 means greedy."""
    top_p: float = 0.999
    """Sample among the most likely tokens that together have this probability."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 means all."""
    min_new_tokens: int = 0
    """No stop token is sampled before this many tokens."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    groups: int = 16
    """Prefix groups (one prefix, K siblings) that are decoded together."""
    length_multiple: int = 128
    """Lengths are padded to a few sizes, the smallest being this."""
    window_multiple: int = 4
    """An image's attention windows (112 x 112 px) are padded to a few numbers, the smallest being this."""
    decode_segment: int = 64
    """Tokens between two looks at which rows have finished."""


@dataclasses.dataclass(frozen=True)
class RLConfig:
    group_size: int = 16
    """G, memories sampled for a question."""
    questions_per_step: int = 64
    """Q, questions of a step."""
    minibatch_questions: int = 16
    """Questions of one optimiser update; a step makes questions_per_step / minibatch_questions of them."""
    weight_std: float = 1.0
    """Weight of the objective std: the question, at the full budget."""
    weight_aug_m: float = 0.7
    """Weight of the objective augM: the question, on the shrunk page."""
    weight_aug_q: float = 0.3
    """Weight of the objective augQ: a cloze over the memory, at the full budget."""
    normalize_by_std: bool = False
    """Divide advantages by the group's standard deviation (GRPO, arXiv 2402.03300); off in the recipe."""
    clip_low: float = 0.2
    """PPO ratio clip below 1 (arXiv 1707.06347)."""
    clip_high: float = 0.2
    """PPO ratio clip above 1; larger than clip_low is DAPO's clip-higher (arXiv 2503.14476)."""
    dual_clip: float = 0.0
    """Lower bound c on the objective of negative advantages (arXiv 1912.09729); 0 means off, else above 1."""
    kl_coef: float = 0.001
    """Coefficient of the KL to the initial policy; 0 means that no copy of it is held."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman, 2020); k3 is the paper's "low variance"."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """How token losses become one number: constant_length is Dr. GRPO (arXiv 2503.20783)."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-6
    warmup_steps: int = 20
    """Optimiser updates over which the learning rate rises linearly from 0; constant after."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    """Steps of the whole run, resumed parts included."""
    max_row_tokens: int = 32768
    """Longest packed row [prefix | siblings]; a group that is longer is split over several rows."""
    length_multiple: int = 1024
    """Packed rows are padded to a few lengths, the smallest being this; fewer lengths compile faster."""
    micro_batch_rows: int = 1
    """Packed rows that go through the model at once; a multiple of mesh.data * mesh.fsdp."""
    logp_chunk_tokens: int = 1024
    """Log-probabilities are computed for this many tokens at a time: [rows, length, V] never exists."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = 1
    """Copies of the parameters."""
    fsdp: int = 1
    """Devices that share one copy of the parameters, each row of a batch being on one of them."""
    tensor: int = 1
    """Devices that share one layer's heads and channels."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 20
    """Steps between checkpoints; the last step is always kept."""
    keep: int = 3
    """Newest checkpoints that are kept."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    trajectory_every_steps: int = 1
    """Steps between those whose trajectories are written; 0 means none."""
    trajectory_questions: int = 2
    """Questions of such a step that are written, with all samples and pages."""
    keep_trajectory_steps: int = 50
    """Newest steps whose trajectories and pages are kept."""
    wandb_project: str = ""
    """Log to this Weights & Biases project too (needs the wandb extra)."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    budgets: tuple[int, ...] = (1024, 512, 256, 128, 64, 32, 16, 8)
    """Visual tokens at which every page is read."""
    questions: int = 128
    """Questions of the validation split; 0 means all."""
    samples: int = 1
    """Memories, each with its answers, per question."""
    temperature: float = 1.0
    top_p: float = 0.7


@dataclasses.dataclass(frozen=True)
class Config:
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompts: PromptsConfig = PromptsConfig()
    agent: AgentConfig = AgentConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    render: RenderSettings = dataclasses.field(default_factory=RenderSettings)
    rl: RLConfig = RLConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    eval: EvalConfig = EvalConfig()


def parse_command(
    argv: Sequence[str],
    prog: str,
    description: str,
    add_arguments: typing.Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> tuple[Config, argparse.Namespace]:
    """Read `--config FILE` and the overrides (`--rl.group-size 8`) of a command line.

    `add_arguments` adds a command's own options, which come back in the namespace (with `config`, the file).
    Raises UserError for anything wrong in the file or in the combination; a misspelt option ends the process
    with tyro's message and status 2.
    """
    import tyro

    own = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    own.add_argument("--config", metavar="FILE", help="the run's configuration, in YAML")
    add_arguments(own)
    wants_help = bool({"-h", "--help"} & set(argv))
    known, overrides = own.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    if known.config is None and not wants_help:
        raise UserError("--config is missing: name a YAML file, for example --config configs/tiny.yaml")
    base = load_config(known.config) if known.config else Config()
    usage = f"{description}\n\nAlso: {own.format_usage().removeprefix('usage: ').strip()} [any option below]"
    if wants_help:
        overrides = [*overrides, "--help"]
    config = tyro.cli(Config, prog=prog, description=usage, args=overrides, default=base)
    if not config.run.dir:
        run = dataclasses.replace(config.run, dir=str(Path("runs") / Path(known.config).stem))
        config = dataclasses.replace(config, run=run)
    validate(config)
    return config, known


def load_config(path: str | Path) -> Config:
    """Read a YAML file strictly: unknown keys and wrong types raise UserError."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    return from_tree(Config, tree if tree is not None else {}, str(path))


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration, every field spelled out; `load_config` reads it back."""
    Path(path).write_text(yaml.safe_dump(to_tree(config), sort_keys=False), encoding="utf-8")


def to_tree(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values (tuples become lists)."""
    tree = dataclasses.asdict(config)

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(tree)


def from_tree(cls: type, tree: Any, source: str, prefix: str = "") -> Any:
    """Build dataclass `cls` from nested mappings; `source` and the dotted field name go into errors."""
    if not isinstance(tree, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} is {tree!r}, not a mapping of fields")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in tree:
        if key not in names:
            raise UserError(f"{source}: unknown field {prefix}{key}{nearest(str(key), names)}")
    try:
        return cls(**{key: _value(hints[key], value, source, prefix + key) for key, value in tree.items()})
    except RenderError as error:
        raise UserError(f"{source}: {error}") from error


def _value(hint: Any, value: Any, source: str, name: str) -> Any:
    """`value` checked against the type `hint` of the field `name`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, {} if value is None else value, source, name + ".")
    if origin is Literal:
        if value not in args:
            raise UserError(f"{source}: {name} is {value!r}{nearest(str(value), [str(a) for a in args])}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source}: {name} is {value!r}, not a list; write [{value}]")
        return tuple(_value(args[0], item, source, f"{name}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, source, name)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-6 (no dot) as a string; people mean the number.
        try:
            value = float(value)
        except ValueError:
            value = str(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        hint_text = kinds.get(hint, getattr(hint, "__name__", str(hint)))
        advice = f"; write {name.rsplit('.', 1)[-1]}: '{value}'" if hint is str else ""
        raise UserError(f"{source}: {name} is {value!r}, which is not {hint_text}{advice}")
    return value


def validate(config: Config) -> None:
    """Raise UserError for values and combinations that cannot work, each with the nearest that can."""
    c = config
    c.data.check()
    _at_least(
        1,
        {
            "agent.draft_max_new_tokens": c.agent.draft_max_new_tokens,
            "agent.read_max_new_tokens": c.agent.read_max_new_tokens,
            "agent.budget_tokens": c.agent.budget_tokens,
            "agent.low_res_factor": c.agent.low_res_factor,
            "agent.gap_fill_blanks": c.agent.gap_fill_blanks,
            "engine.groups": c.engine.groups,
            "engine.length_multiple": c.engine.length_multiple,
            "engine.window_multiple": c.engine.window_multiple,
            "engine.decode_segment": c.engine.decode_segment,
            "rl.questions_per_step": c.rl.questions_per_step,
            "rl.minibatch_questions": c.rl.minibatch_questions,
            "train.length_multiple": c.train.length_multiple,
            "train.micro_batch_rows": c.train.micro_batch_rows,
            "train.logp_chunk_tokens": c.train.logp_chunk_tokens,
            "mesh.data": c.mesh.data,
            "mesh.fsdp": c.mesh.fsdp,
            "mesh.tensor": c.mesh.tensor,
            "checkpoint.every_steps": c.checkpoint.every_steps,
            "checkpoint.keep": c.checkpoint.keep,
            "eval.samples": c.eval.samples,
        },
    )
    _at_least(2, {"rl.group_size": c.rl.group_size})  # a group of one has no advantage
    _at_least(
        0,
        {
            "run.seed": c.run.seed,
            "train.steps": c.train.steps,
            "sampling.top_k": c.sampling.top_k,
            "sampling.min_new_tokens": c.sampling.min_new_tokens,
            "rl.weight_std": c.rl.weight_std,
            "rl.weight_aug_m": c.rl.weight_aug_m,
            "rl.weight_aug_q": c.rl.weight_aug_q,
            "rl.clip_low": c.rl.clip_low,
            "rl.clip_high": c.rl.clip_high,
            "rl.kl_coef": c.rl.kl_coef,
            "optimizer.learning_rate": c.optimizer.learning_rate,
            "optimizer.warmup_steps": c.optimizer.warmup_steps,
            "optimizer.weight_decay": c.optimizer.weight_decay,
            "log.trajectory_every_steps": c.log.trajectory_every_steps,
            "log.trajectory_questions": c.log.trajectory_questions,
            "eval.questions": c.eval.questions,
            "eval.temperature": c.eval.temperature,
        },
    )
    if not c.model.path:
        raise UserError("model.path is empty: name a Hugging Face directory or a config.json")
    if c.sampling.temperature <= 0:
        raise UserError(
            f"sampling.temperature is {c.sampling.temperature}: training samples, so use a value "
            "above 0 such as 1.0"
        )
    for name, value in {"sampling.top_p": c.sampling.top_p, "eval.top_p": c.eval.top_p}.items():
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}: use a probability above 0 and at most 1")
    if c.sampling.min_new_tokens > min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens):
        raise UserError(
            f"sampling.min_new_tokens is {c.sampling.min_new_tokens}, more than a completion may have "
            "(agent.draft_max_new_tokens, agent.read_max_new_tokens); use at most "
            f"{min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens)}"
        )
    if c.rl.weight_std + c.rl.weight_aug_m + c.rl.weight_aug_q <= 0:
        raise UserError("rl.weight_std, weight_aug_m and weight_aug_q are all 0: nothing would be learned")
    if c.rl.dual_clip != 0 and c.rl.dual_clip <= 1:
        raise UserError(f"rl.dual_clip is {c.rl.dual_clip}: use 0 (off) or a value above 1 such as 3.0")
    if c.rl.questions_per_step % c.rl.minibatch_questions:
        divisors = [d for d in range(1, c.rl.questions_per_step + 1) if c.rl.questions_per_step % d == 0]
        best = min(divisors, key=lambda d: abs(d - c.rl.minibatch_questions))
        raise UserError(
            f"rl.minibatch_questions is {c.rl.minibatch_questions}, which does not divide "
            f"rl.questions_per_step = {c.rl.questions_per_step}; the nearest that does is {best}"
        )
    rows = c.mesh.data * c.mesh.fsdp
    for name, value in {
        "train.micro_batch_rows": c.train.micro_batch_rows,
        "engine.groups": c.engine.groups,
    }.items():
        if value % rows:
            raise UserError(
                f"{name} is {value}, which does not divide over mesh.data * mesh.fsdp = {rows} devices; "
                f"the nearest that does is {max(rows, round(value / rows) * rows)}"
            )
    if not c.eval.budgets or min(c.eval.budgets) < 1:
        raise UserError(f"eval.budgets is {list(c.eval.budgets)}: name budgets of at least 1 token")


def _at_least(least: float, values: dict[str, float]) -> None:
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}: the smallest that works is {least}")
