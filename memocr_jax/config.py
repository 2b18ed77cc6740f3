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
    """Where the run leaves everything: a folder, or a bucket (gs://, s3://); empty means runs/<name of the
    config file>."""
    staging: str = ""
    """Folder on this machine in which a run in a bucket is worked on; empty means a temporary one."""
    seed: int = 0
    """Seed of every random stream of the run."""
    fresh: bool = False
    """Start over: what is in the run directory is moved aside instead of being continued."""
    compiled_dir: str = ""
    """Folder or bucket that keeps compiled programs, for all processes and later runs; empty means what the
    environment says (JAX_COMPILATION_CACHE_DIR), else none."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """A Hugging Face directory (config.json and safetensors), or a config.json alone for random weights."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Where the weights come from: the directory, or the run's seed."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type. Parameters, norms, softmax and log-probabilities are float32 in either case."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """What computes attention where rows are laid out alike (prefill; training with train.row_layout:
    aligned): plain operations, cuDNN's flash attention (GPU, bfloat16), or splash attention (TPU)."""


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
    """Most tokens between two looks at which rows have finished."""
    cache_gib: float = 0.0
    """Memory for keys and values on each device, in GiB (2^30 bytes); 0 means that only `groups` limits."""
    prefill_tokens: int = 8192
    """Prompt tokens that are computed at once, where a group is not longer by itself."""
    pool_sizes: int = 2
    """Numbers of rows that decoding is compiled for, each a quarter of the one before: when few rows are
    left, decoding goes on with fewer."""
    length_sizes: int = 2
    """Lengths that prompts of a kind are padded to when prefilled, each half of the one before."""
    warm_up: bool = True
    """Compile every program that sampling needs before the first step. False compiles each when it is needed:
    the first step comes sooner, but a later one may stop to compile."""
    question_tokens: int = 256
    """Longest question that programs are compiled for ahead; a longer one compiles one of its own."""
    tensor: int = 1
    """Devices of a process that share one layer while sampling; the others hold copies."""
    devices: int = 0
    """Devices of each process that only sample, the others only train; 0 means that all do both."""


@dataclasses.dataclass(frozen=True)
class RLConfig:
    group_size: int = 16
    """G, memories sampled for a question."""
    questions_per_step: int = 64
    """Q, questions of a step."""
    waves: int = 2
    """Parts in which a step's questions are sampled: one part's pages are drawn while another is drafted."""
    staleness: Literal[0, 1] = 0
    """1: a step's samples come from the weights before the last update, so that both go on at once."""
    minibatch_questions: int = 16
    """Questions of one optimiser update; a step makes questions_per_step / minibatch_questions of them."""
    weight_std: float = 1.0
    """Weight of the objective std: the question, at the full budget."""
    weight_aug_m: float = 0.7
    """Weight of the objective augM: the question, on the shrunk page."""
    weight_aug_q: float = 0.3
    """Weight of the objective augQ: a cloze over the memory, at the full budget."""
    train_reads: bool = True
    """Whether the turns that read a page are trained; without, they only give the drafts their rewards."""
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
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's probability ratio (PPO), or the turn's, normalised by its length (GSPO,
    arXiv 2507.18071, which clips as tightly as clip_low 3e-4, clip_high 4e-4)."""
    old_logp: Literal["recomputed", "sampler"] = "recomputed"
    """Log-probabilities that the ratio is taken to: those of the parameters the step's updates start from,
    computed again by the learner, or those that the sampler gave (saves a forward pass)."""
    tis_cap: float = 0.0
    """Truncated importance sampling (Ionides 2008; V-trace's rho, arXiv 1802.01561): a token weighs
    min(old / sampler, cap), which corrects for a sampler that is not the learner's policy; 0 means off, else
    at least 1, such as 2.0."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int = 16
    """Rank r of the adapters (arXiv 2106.09685); used with train.trainable lora."""
    alpha: float = 32.0
    """Adapters add alpha / rank * B A x."""
    targets: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear maps of every decoder layer that get one."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the frozen base is held; adapters are float32. Published weights are bfloat16: nothing of
    them is lost, and the base and what samples take half the memory."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"
    """muon (arXiv 2502.16982): orthogonalised momentum for matrices, AdamW for everything else."""
    learning_rate: float = 1e-6
    warmup_steps: int = 20
    """Optimiser updates over which the learning rate rises linearly from 0; constant after."""
    decay_steps: int = 0
    """Updates after the warm-up over which the rate falls linearly to 0; 0 means that it stays."""
    muon_adam_ratio: float = 0.3
    """Learning rate of Muon's AdamW (norms, biases, tables of tokens), as a share of learning_rate."""
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
    trainable: Literal["all", "decoder", "lora"] = "all"
    """What is trained: every parameter; all but the vision tower; or adapters (section lora) alone."""
    max_row_tokens: int = 32768
    """Longest packed row [prefix | siblings]; a group that is longer is split over several rows."""
    row_layout: Literal["packed", "aligned"] = "packed"
    """packed: siblings follow each other without gaps, under a mask. aligned: each has as many slots as the
    longest of its row, so that attention skips what no sibling sees: less work where lengths are alike."""
    length_multiple: int = 1024
    """Packed rows are padded to a few lengths, the smallest being this; fewer lengths compile faster."""
    micro_batch_rows: int = 1
    """Packed rows that go through the model at once; a multiple of mesh.data * mesh.fsdp."""
    remat: Literal["none", "dots", "full"] = "full"
    """What layers keep for the backward pass of the warm-up: everything (fastest, for small models), the
    results of matrix products, or their input only."""
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
class ProcessesConfig:
    launcher: Literal["none", "flags", "slurm", "tpu_vm", "gke_tpu", "jobset", "mpi"] = "none"
    """Who started this process and tells it of the others: none (it is alone), the three fields below, or the
    environment that srun, a TPU VM, GKE, JobSet or mpirun gives."""
    coordinator: str = ""
    """host:port of process 0 (launcher flags)."""
    count: int = 1
    """Processes of this job (launcher flags)."""
    index: int = 0
    """Which of them this is, from 0 (launcher flags)."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 20
    """Steps between checkpoints; the last step is always kept."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    keep_best: int = 1
    """Checkpoints that are kept for the best accuracy in validation."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Reading the validation questions during training; `eval` is the evaluation of a finished run."""

    every_steps: int = 10
    """Steps between two validations; 0 means none."""
    questions: int = 32
    """Questions of the validation split; 0 means all."""
    budgets: tuple[int, ...] = (512, 64, 16)
    """Visual tokens at which every page is read; the best checkpoint has the best mean accuracy over them."""
    samples: int = 4
    """Memories, each with its answers, per question."""
    temperature: float = 1.0
    top_p: float = 0.7


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    max_skipped_updates: int = 5
    """Updates in a row that may be skipped for a gradient that is not finite, before the run stops."""
    max_failed_pages: float = 0.5
    """Share of a step's memories whose page may fail to be drawn, before the run stops."""
    hang_s: float = 0.0
    """Seconds without any progress after which a process writes the stacks of its threads to stacks/ and ends
    with status 1, for its launcher to start all again; 0 means that it waits. Longer than a compilation."""


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    steps: str = ""
    """Steps to capture a profile of, as first:last (10:13 are four) or one number; empty means none."""


@dataclasses.dataclass(frozen=True)
class WarmupStage:
    """A part of the warm-up: what a batch is made of, for how many updates."""

    updates: int = 0
    rows: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Packed rows of a batch by lesson: draft (write a memory), lookup (questions about a memory given as
    text), read@B (questions about a page shown at B visual tokens), titles@B (about two facts, both
    headings)."""
    facts_min: int = 1
    """Fewest facts that a memory of this stage has."""
    facts_max: int = 0
    """Most facts; 0 means data.synthetic.facts."""
    questions: int = 0
    """Questions that are asked of one memory; 0 means one for every fact."""
    ask: Literal["any", "headings"] = "any"
    """Which facts are asked about: any of them; or headings first, and on pages below the full budget (where
    nothing else can be read) one heading alone."""
    clozes: int = 1
    """Clozes that are asked of one memory, where it is text or a page at the full budget."""


@dataclasses.dataclass(frozen=True)
class WarmupConfig:
    """Supervised training before GRPO (`python -m memocr_jax.warmup`)."""

    data: str = ""
    """JSON lines of conversations ({"messages": [...]}, image paths relative to the file) to train on; empty
    means lessons in the synthetic world of `data.synthetic`."""
    stages: tuple[WarmupStage, ...] = ()
    """Stages in their order (lessons of the synthetic world)."""
    updates: int = 1000
    """Optimiser updates on `data`; with stages their sum counts."""
    batch_rows: int = 8
    """Conversations of an update on `data`."""
    from_nothing: bool = False
    """Start random weights with silent blocks and a head that looks one token back
    (memocr_jax/sft/start.py)."""
    check_every: int = 100
    """Updates between two checks on held-out lessons; 0 means none."""
    check_rows: int = 64
    """Rows of each lesson in such a check."""


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


Method = Literal["visual memory", "visual without layout", "text memory", "raw history"]
"""How a question is answered in an evaluation (arXiv 2601.21468, section 5): from the memory's page; from a
page of the same memory in one font size; from the memory's first tokens as text; from the document itself."""


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """One column of the evaluation's table: a data set at a length."""

    name: str = ""
    """The data set's name in results and tables."""
    length: str = ""
    """The length's name there, such as 10k."""
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `data` that are other than in the `data` section, such as {validation_path: FILE}."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    budgets: tuple[int, ...] = (1024, 512, 256, 128, 64, 32, 16, 8)
    """Visual tokens at which every page is read; for a text memory, its tokens."""
    methods: tuple[Method, ...] = ("visual memory",)
    """What is compared; all but raw history share one draft."""
    sets: tuple[EvalSet, ...] = ()
    """Data sets and lengths; empty means the validation questions of `data`."""
    questions: int = 128
    """Questions of each set, the first ones; 0 means all."""
    samples: int = 1
    """Memories, each with its answers, per question."""
    temperature: float = 1.0
    """0 means greedy."""
    top_p: float = 0.7
    raw_max_tokens: int = 0
    """Longest document, in tokens, that raw history gives to the model; a longer one loses its middle.
    0 means as much as the model's positions allow."""
    wave_questions: int = 0
    """Questions that are worked on together; what an interruption can cost. 0 means engine.groups."""
    bootstrap: int = 1000
    """Resamplings of the questions for the 95 % confidence intervals; 0 means none."""
    report_questions: int = 60
    """Questions of each set that report.html shows with their pages; 0 means all."""
    report_mb: int = 40
    """Size of all pages in report.html together, in MiB; later ones are left out and counted."""


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
    lora: LoraConfig = LoraConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    processes: ProcessesConfig = ProcessesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    health: HealthConfig = HealthConfig()
    profile: ProfileConfig = ProfileConfig()
    log: LogConfig = LogConfig()
    eval: EvalConfig = EvalConfig()
    warmup: WarmupConfig = WarmupConfig()

    @property
    def param_dtype(self) -> str:
        """Type in which parameters are held: float32, but for the frozen base of adapters."""
        return self.lora.base_dtype if self.train.trainable == "lora" else "float32"


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
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{source}: {name} is {value!r}, not a mapping of fields")
        return value
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
            "engine.prefill_tokens": c.engine.prefill_tokens,
            "engine.pool_sizes": c.engine.pool_sizes,
            "engine.length_sizes": c.engine.length_sizes,
            "engine.question_tokens": c.engine.question_tokens,
            "engine.tensor": c.engine.tensor,
            "rl.waves": c.rl.waves,
            "rl.questions_per_step": c.rl.questions_per_step,
            "rl.minibatch_questions": c.rl.minibatch_questions,
            "lora.rank": c.lora.rank,
            "train.length_multiple": c.train.length_multiple,
            "train.micro_batch_rows": c.train.micro_batch_rows,
            "train.logp_chunk_tokens": c.train.logp_chunk_tokens,
            "mesh.data": c.mesh.data,
            "mesh.fsdp": c.mesh.fsdp,
            "mesh.tensor": c.mesh.tensor,
            "checkpoint.every_steps": c.checkpoint.every_steps,
            "checkpoint.keep": c.checkpoint.keep,
            "processes.count": c.processes.count,
            "validation.samples": c.validation.samples,
            "eval.samples": c.eval.samples,
        },
    )
    _at_least(2, {"rl.group_size": c.rl.group_size})  # a group of one has no advantage
    _at_least(
        0,
        {
            "run.seed": c.run.seed,
            "train.steps": c.train.steps,
            "engine.cache_gib": c.engine.cache_gib,
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
            "optimizer.decay_steps": c.optimizer.decay_steps,
            "optimizer.muon_adam_ratio": c.optimizer.muon_adam_ratio,
            "warmup.check_every": c.warmup.check_every,
            "optimizer.weight_decay": c.optimizer.weight_decay,
            "engine.devices": c.engine.devices,
            "checkpoint.keep_best": c.checkpoint.keep_best,
            "validation.every_steps": c.validation.every_steps,
            "validation.questions": c.validation.questions,
            "validation.temperature": c.validation.temperature,
            "health.max_skipped_updates": c.health.max_skipped_updates,
            "health.max_failed_pages": c.health.max_failed_pages,
            "health.hang_s": c.health.hang_s,
            "log.trajectory_every_steps": c.log.trajectory_every_steps,
            "log.trajectory_questions": c.log.trajectory_questions,
            "eval.questions": c.eval.questions,
            "eval.temperature": c.eval.temperature,
            "eval.raw_max_tokens": c.eval.raw_max_tokens,
            "eval.wave_questions": c.eval.wave_questions,
            "eval.bootstrap": c.eval.bootstrap,
            "eval.report_questions": c.eval.report_questions,
            "eval.report_mb": c.eval.report_mb,
        },
    )
    if not c.model.path:
        raise UserError("model.path is empty: name a Hugging Face directory or a config.json")
    if c.sampling.temperature <= 0:
        raise UserError(
            f"sampling.temperature is {c.sampling.temperature}: training samples, so use a value "
            "above 0 such as 1.0"
        )
    probabilities = {
        "sampling.top_p": c.sampling.top_p,
        "validation.top_p": c.validation.top_p,
        "eval.top_p": c.eval.top_p,
    }
    for name, value in probabilities.items():
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}: use a probability above 0 and at most 1")
    if c.sampling.min_new_tokens > min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens):
        raise UserError(
            f"sampling.min_new_tokens is {c.sampling.min_new_tokens}, more than a completion may have "
            "(agent.draft_max_new_tokens, agent.read_max_new_tokens); use at most "
            f"{min(c.agent.draft_max_new_tokens, c.agent.read_max_new_tokens)}"
        )
    if c.model.attention != "xla" and c.train.row_layout == "packed":
        raise UserError(
            f"model.attention is {c.model.attention} with train.row_layout: packed, where training would not "
            "use it; set train.row_layout to aligned, or model.attention to xla"
        )
    if c.rl.weight_std + c.rl.weight_aug_m + c.rl.weight_aug_q <= 0:
        raise UserError("rl.weight_std, weight_aug_m and weight_aug_q are all 0: nothing would be learned")
    if c.rl.dual_clip != 0 and c.rl.dual_clip <= 1:
        raise UserError(f"rl.dual_clip is {c.rl.dual_clip}: use 0 (off) or a value above 1 such as 3.0")
    if c.rl.tis_cap != 0 and c.rl.tis_cap < 1:
        raise UserError(
            f"rl.tis_cap is {c.rl.tis_cap}: a cap below 1 would scale down even what needs no "
            "correction; use 0 (off) or a value of at least 1 such as 2.0"
        )
    if c.rl.tis_cap and c.rl.old_logp == "sampler":
        raise UserError(
            f"rl.tis_cap is {c.rl.tis_cap} with rl.old_logp sampler: the ratio is taken to the sampler "
            "already, so every weight would be 1; set rl.tis_cap: 0 or rl.old_logp: recomputed"
        )
    if c.rl.staleness and c.rl.old_logp == "recomputed" and not c.rl.tis_cap:
        raise UserError(
            f"rl.staleness is {c.rl.staleness} with rl.old_logp recomputed and rl.tis_cap 0: nothing would "
            "correct for the older policy that sampled; set rl.tis_cap: 2.0 or rl.old_logp: sampler"
        )
    if c.train.trainable == "lora":
        if not c.lora.targets:
            raise UserError(
                "lora.targets is empty: nothing would be trained; name some, such as [q_proj, v_proj]"
            )
        if c.lora.alpha <= 0:
            raise UserError(f"lora.alpha is {c.lora.alpha}: use a value above 0, such as {2.0 * c.lora.rank}")
    if c.rl.questions_per_step % c.rl.minibatch_questions:
        divisors = [d for d in range(1, c.rl.questions_per_step + 1) if c.rl.questions_per_step % d == 0]
        best = min(divisors, key=lambda d: abs(d - c.rl.minibatch_questions))
        raise UserError(
            f"rl.minibatch_questions is {c.rl.minibatch_questions}, which does not divide "
            f"rl.questions_per_step = {c.rl.questions_per_step}; the nearest that does is {best}"
        )
    rows = c.mesh.data * c.mesh.fsdp
    if c.train.micro_batch_rows % rows:
        raise UserError(
            f"train.micro_batch_rows is {c.train.micro_batch_rows}, which does not divide over mesh.data * "
            f"mesh.fsdp = {rows} devices; the nearest that does is "
            f"{max(rows, round(c.train.micro_batch_rows / rows) * rows)}"
        )
    for name, budgets in {"eval": c.eval.budgets, "validation": c.validation.budgets}.items():
        if not budgets or min(budgets) < 1:
            raise UserError(f"{name}.budgets is {list(budgets)}: name budgets of at least 1 token")
    p = c.processes
    if p.launcher == "flags" and (":" not in p.coordinator or not 0 <= p.index < p.count):
        raise UserError(
            f"processes: launcher flags needs coordinator (host:port), count, and index from 0 to count - 1; "
            f"they are {p.coordinator!r}, {p.count} and {p.index}"
        )
    if p.launcher != "flags" and (p.coordinator or p.count != 1 or p.index):
        raise UserError(
            f"processes.coordinator, count and index are used with launcher flags only; it is {p.launcher!r}"
        )
    profile_steps(c.profile.steps)
    if not c.eval.methods:
        raise UserError(f"eval.methods is empty: name some of {', '.join(typing.get_args(Method))}")
    for name, values in {"eval.budgets": c.eval.budgets, "eval.methods": c.eval.methods}.items():
        if len(set(values)) < len(values):
            raise UserError(f"{name} is {list(values)}: name each once")
    if c.eval.samples > 1 and c.eval.temperature == 0:
        raise UserError(
            f"eval.samples is {c.eval.samples} with eval.temperature 0: greedy samples are all alike; use "
            "eval.samples 1 or a temperature above 0"
        )
    evaluation_sets(c)


def profile_steps(text: str) -> tuple[int, int] | None:
    """`profile.steps` as (first, last), or None. Raises UserError."""
    if not text:
        return None
    first, _, last = text.partition(":")
    try:
        found = int(first), int(last or first)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise UserError(f"profile.steps is {text!r}: give a step or first:last, such as 10:13")
    return found


def evaluation_sets(config: Config) -> list[tuple[str, str, DataConfig]]:
    """(name, length, data settings) of every set that an evaluation reads, in the order of `eval.sets`.

    A set's own settings replace fields of `config.data`; unless they say otherwise it has as many validation
    questions as `eval.questions` asks for. Raises UserError for what cannot work, named as eval.sets[i].
    """
    base = config.data
    if not config.eval.sets:
        name = Path(base.validation_path or base.path).stem or base.source
        return [(name, f"{base.document_tokens:,} tokens" if base.document_tokens else "native", base)]
    sets: list[tuple[str, str, DataConfig]] = []
    for i, one in enumerate(config.eval.sets):
        field = f"eval.sets[{i}]"
        if not one.name or not one.length:
            raise UserError(f"{field}: name is {one.name!r} and length {one.length!r}; give both")
        if not (one.name + one.length).isprintable():
            raise UserError(f"{field}: name {one.name!r} or length {one.length!r} has control characters")
        if (one.name, one.length) in [(name, length) for name, length, _ in sets]:
            raise UserError(f"{field}: {one.name} at {one.length} is there twice; rename one of them")
        data = from_tree(DataConfig, _merged(to_tree(base), one.data), field, "data.")
        if "validation_questions" not in one.data and (data.validation_path or data.source == "synthetic"):
            wanted = config.eval.questions or (10**9 if data.validation_path else data.validation_questions)
            data = dataclasses.replace(data, validation_questions=wanted)
        data.check(f"{field}.data")
        sets.append((one.name, one.length, data))
    return sets


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the values of `changes`, mappings within mappings merged."""
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _at_least(least: float, values: dict[str, float]) -> None:
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}: the smallest that works is {least}")
