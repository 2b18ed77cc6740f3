"""The sections of a configuration. Numbers of the paper's recipe (arXiv 2601.21468) are the defaults."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from memocr_jax.config.answers import DECIDES_ANSWERS, KEEPS_ANSWERS
from memocr_jax.config.data import DataConfig
from render.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from render.settings import RenderSettings


@dataclasses.dataclass(frozen=True)
class RunConfig:
    dir: str = ""
    """Where the run writes all its files: a folder, or a bucket (gs://, s3://); empty means runs/<name of the
    config file>."""
    staging: str = ""
    """Folder on this machine for the files of a run in a bucket; empty means a temporary one."""
    seed: Annotated[NonNegativeInt, DECIDES_ANSWERS] = 0
    """Seed of every random stream of the run."""
    fresh: bool = False
    """Start over: an earlier run in the directory is moved aside instead of being continued."""
    compiled_dir: str = ""
    """Folder or bucket that keeps compiled programs, for all processes and later runs; empty means what the
    environment says (JAX_COMPILATION_CACHE_DIR), else none."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    path: str = ""
    """A Hugging Face directory (config.json and safetensors), or a config.json alone for random weights."""
    shapes: str = ""
    """A folder with the config.json alone, for plans (`compile_plan`) while `path` is not there yet."""
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
    """A YAML file with prompt templates of your own (agent/prompts.py); empty means the project's."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    memory_format: Annotated[Literal["markdown", "html"], DECIDES_ANSWERS] = "markdown"
    """The format of memories; it selects both the prompt and the renderer's mode."""
    draft_max_new_tokens: Annotated[PositiveInt, DECIDES_ANSWERS] = 2048
    """Longest memory, in tokens."""
    read_max_new_tokens: Annotated[PositiveInt, DECIDES_ANSWERS] = 2048
    """Longest answer, in tokens."""
    budget_tokens: PositiveInt = 512
    """Visual tokens of the full view in training (objectives std and augM)."""
    low_res_factor: PositiveInt = 4
    """The low-resolution view has this many times fewer pixels per side (objective augM)."""
    low_res_mode: Literal["shrink", "blur"] = "shrink"
    """`shrink`: fewer pixels and so fewer tokens, as in the paper; `blur`: blurred at equal size."""
    gap_fill_window_chars: PositiveInt = 300
    """Length of the memory's text that a cloze shows (objective augQ)."""
    gap_fill_blanks: PositiveInt = 3
    """Words that a cloze leaves out."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    temperature: NonNegativeFloat = 1.0
    """Divides the logits; 0 means greedy."""
    top_p: Probability = 0.999
    """Sample among the most likely tokens that together have this probability."""
    top_k: NonNegativeInt = 0
    """Sample among this many most likely tokens; 0 means all."""
    min_new_tokens: NonNegativeInt = 0
    """No stop token is sampled before this many tokens."""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    groups: PositiveInt = 16
    """Prefix groups (one prefix, K siblings) that are decoded together."""
    length_multiple: PositiveInt = 128
    """Lengths are padded to a few sizes, the smallest being this."""
    window_multiple: PositiveInt = 4
    """An image's attention windows (112 x 112 px) are padded to a few numbers, the smallest being this."""
    decode_segment: PositiveInt = 64
    """Most tokens that are decoded before finished rows leave."""
    cache_gib: NonNegativeFloat = 0.0
    """Memory for keys and values on each device, in GiB (2^30 bytes); 0 means that only `groups` limits."""
    prefill_tokens: PositiveInt = 8192
    """Prompt tokens that are computed at once; a longer group is computed alone."""
    pool_sizes: PositiveInt = 2
    """Numbers of rows that decoding is compiled for, each a quarter of the one before: when few rows are
    left, decoding continues with fewer."""
    length_sizes: PositiveInt = 2
    """Lengths that prompts of a kind are padded to when prefilled, each half of the one before."""
    warm_up: Annotated[bool, KEEPS_ANSWERS] = True
    """Compile every program that sampling needs before the first step. False compiles each when it is needed:
    the first step comes sooner, but a later one may stop to compile."""
    question_tokens: PositiveInt = 256
    """Longest question that programs are compiled for ahead; a longer one compiles one of its own."""
    tensor: PositiveInt = 1
    """Devices of a process that share one layer while sampling; the others hold copies."""
    devices: NonNegativeInt = 0
    """Devices of each process that only sample, the others only train; 0 means that all do both."""


@dataclasses.dataclass(frozen=True)
class RLConfig:
    group_size: Annotated[int, Ge(2)] = 16
    """G, memories sampled for a question."""
    questions_per_step: PositiveInt = 64
    """Q, questions of a step."""
    waves: PositiveInt = 2
    """Parts in which a step's questions are sampled: one part's pages are drawn while another is drafted."""
    staleness: Literal[0, 1] = 0
    """1: a step's samples come from the weights before the last update, so that sampling and update
    overlap."""
    minibatch_questions: PositiveInt = 16
    """Questions of one optimiser update; a step makes questions_per_step / minibatch_questions of them."""
    weight_std: NonNegativeFloat = 1.0
    """Weight of the objective std: the question, at the full budget."""
    weight_aug_m: NonNegativeFloat = 0.7
    """Weight of the objective augM: the question, on the shrunk page."""
    weight_aug_q: NonNegativeFloat = 0.3
    """Weight of the objective augQ: a cloze over the memory, at the full budget."""
    train_reads: bool = True
    """Whether the turns that read a page are trained; without, they only give the drafts their rewards."""
    leave_out_flat_groups: bool = False
    """Do not train turns of groups whose samples all earned the same: they have no signal but the KL, and
    count in the denominators of the others."""
    normalize_by_std: bool = False
    """Divide advantages by the group's standard deviation (GRPO, arXiv 2402.03300); off in the recipe."""
    clip_low: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """PPO ratio clip below 1 (arXiv 1707.06347)."""
    clip_high: NonNegativeFloat = 0.2
    """PPO ratio clip above 1; larger than clip_low is DAPO's clip-higher (arXiv 2503.14476)."""
    dual_clip: NonNegativeFloat = 0.0
    """Lower bound c on the objective of negative advantages (arXiv 1912.09729); 0 means off, else above 1."""
    kl_coef: NonNegativeFloat = 0.001
    """Coefficient of the KL to the initial policy; 0 means that no copy of it is held."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman, 2020); k3 is the paper's "low variance"."""
    kl_clamp: bool = True
    """Bound k3 (log-ratio to +-20, value to +-10), so that no single token decides an update."""
    aggregation: Literal["token_mean", "sequence_mean", "constant_length"] = "token_mean"
    """How token losses become one number: constant_length is Dr. GRPO (arXiv 2503.20783)."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's probability ratio (PPO), or the turn's, normalised by its length (GSPO,
    arXiv 2507.18071, which clips as tightly as clip_low 3e-4, clip_high 4e-4)."""
    old_logp: Literal["recomputed", "sampler"] = "recomputed"
    """Log-probabilities in the ratio's denominator: recomputed by the learner with the parameters that the
    step's updates start from, or those that the sampler gave (saves a forward pass)."""
    tis_cap: NonNegativeFloat = 0.0
    """Truncated importance sampling (Ionides 2008; V-trace's rho, arXiv 1802.01561): a token weighs
    min(old / sampler, cap), which corrects for a sampler that is not the learner's policy; 0 means off, else
    at least 1, such as 2.0."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: PositiveInt = 16
    """Rank r of the adapters (arXiv 2106.09685); used with train.trainable lora."""
    alpha: PositiveFloat = 32.0
    """Adapters add alpha / rank * B A x."""
    targets: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear maps of every decoder layer that get one."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen base; adapters are float32. bfloat16 loses nothing of published weights, which are
    bfloat16, and halves the memory of the base and of the sampler's weights."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"
    """muon (arXiv 2502.16982): orthogonalised momentum for matrices, AdamW for everything else."""
    learning_rate: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt = 20
    """Optimiser updates over which the learning rate rises linearly from 0; constant after."""
    decay_steps: NonNegativeInt = 0
    """Updates after the warm-up over which the rate falls linearly to 0; 0 means that it stays."""
    muon_adam_ratio: NonNegativeFloat = 0.3
    """Learning rate of Muon's AdamW (norms, biases, tables of tokens), as a share of learning_rate."""
    b1: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    clip_norm: PositiveFloat = 1.0
    """Largest global norm of the gradient; .inf does not clip."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: NonNegativeInt = 1000
    """Steps of the whole run, resumed parts included."""
    trainable: Literal["all", "decoder", "lora"] = "all"
    """What is trained: every parameter; all but the vision tower; or adapters (section lora) alone."""
    max_row_tokens: PositiveInt = 32768
    """Longest packed row [prefix | siblings]; a group that is longer is split over several rows."""
    row_layout: Literal["packed", "aligned"] = "packed"
    """packed: siblings follow each other without gaps, under a mask. aligned: each has as many slots as the
    longest of its row, so that attention skips what no sibling sees: less work where lengths are alike."""
    length_multiple: PositiveInt = 1024
    """Packed rows are padded to a few lengths, the smallest being this; fewer lengths compile faster."""
    micro_batch_rows: PositiveInt = 1
    """Packed rows that go through the model at once; a multiple of mesh.data * mesh.fsdp."""
    remat: Literal["none", "dots", "full"] = "full"
    """What layers keep for the backward pass: everything (fastest, for small models), the results of matrix
    products, or their input only."""
    logp_chunk_tokens: PositiveInt = 1024
    """Log-probabilities are computed for this many tokens at a time: [rows, length, V] never exists."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: PositiveInt = 1
    """Copies of the parameters."""
    fsdp: PositiveInt = 1
    """Devices that share one copy of the parameters, each row of a batch being on one of them."""
    tensor: PositiveInt = 1
    """Devices that share one layer's heads and channels."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    launcher: Literal["none", "flags", "slurm", "tpu_vm", "gke_tpu", "jobset", "mpi"] = "none"
    """How this process finds the others: none (it is alone), flags (the three fields below), or the
    environment of srun, a TPU VM, GKE, JobSet or mpirun."""
    coordinator: str = ""
    """host:port of process 0 (launcher flags)."""
    count: PositiveInt = 1
    """Processes of this job (launcher flags)."""
    index: NonNegativeInt = 0
    """Which of them this is, from 0 (launcher flags)."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: PositiveInt = 20
    """Steps between checkpoints; the last step is always kept."""
    keep: PositiveInt = 3
    """Newest checkpoints that are kept."""
    keep_best: NonNegativeInt = 1
    """Checkpoints that are kept for the best accuracy in validation."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Validation during training; `eval` is the evaluation of a finished run."""

    every_steps: NonNegativeInt = 10
    """Steps between two validations; 0 means none."""
    questions: NonNegativeInt = 32
    """Questions of the validation split; 0 means all."""
    budgets: tuple[PositiveInt, ...] = (512, 64, 16)
    """Visual tokens at which every page is read; the best checkpoint has the best mean accuracy over them."""
    samples: PositiveInt = 4
    """Memories, each with its answers, per question."""
    temperature: NonNegativeFloat = 1.0
    top_p: Probability = 0.7


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    max_skipped_updates: NonNegativeInt = 5
    """Updates in a row that may be skipped for a gradient that is not finite, before the run stops."""
    max_failed_pages: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share of a step's memories whose page may fail to be drawn, before the run stops."""
    hang_s: NonNegativeFloat = 0.0
    """Seconds without any progress after which a process writes the stacks of its threads to stacks/ and ends
    with status 1, for its launcher to start all again; 0 means that it waits. Longer than a compilation."""


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    steps: str = ""
    """Steps to capture a profile of, as first:last (10:13 are four) or one number; empty means none."""


@dataclasses.dataclass(frozen=True)
class WarmupStage:
    """A part of the warm-up: the lessons of a batch, and the number of updates."""

    updates: NonNegativeInt = 0
    rows: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Packed rows of a batch by lesson: draft (write a memory), lookup (questions about a memory given as
    text), read@B (questions about a page shown at B visual tokens), titles@B (about two facts, both
    headings)."""
    facts_min: PositiveInt = 1
    """Fewest facts that a memory of this stage has."""
    facts_max: NonNegativeInt = 0
    """Most facts; 0 means data.synthetic.facts."""
    questions: NonNegativeInt = 0
    """Questions that are asked of one memory; 0 means one for every fact."""
    ask: Literal["any", "headings"] = "any"
    """Which facts are asked about: any of them; or headings first, and on pages below the full budget (where
    nothing else can be read) one heading alone."""
    clozes: NonNegativeInt = 1
    """Clozes that are asked of one memory, where it is text or a page at the full budget."""


@dataclasses.dataclass(frozen=True)
class WarmupConfig:
    """Supervised training before GRPO (`python -m memocr_jax.warmup`)."""

    data: str = ""
    """JSON lines of conversations ({"messages": [...]}, image paths relative to the file) to train on; empty
    means lessons in the synthetic world of `data.synthetic`."""
    stages: tuple[WarmupStage, ...] = ()
    """Stages in their order (lessons of the synthetic world)."""
    updates: PositiveInt = 1000
    """Optimiser updates on `data`; with stages their sum counts."""
    batch_rows: PositiveInt = 8
    """Conversations of an update on `data`."""
    from_nothing: bool = False
    """Start random weights with silent blocks and a head that looks one token back
    (memocr_jax/sft/prior.py)."""
    check_every: NonNegativeInt = 100
    """Updates between two checks on held-out lessons; 0 means none."""
    check_rows: PositiveInt = 64
    """Rows of each lesson in such a check."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    trajectory_every_steps: NonNegativeInt = 1
    """Steps between those whose trajectories are written; 0 means none."""
    trajectory_questions: NonNegativeInt = 2
    """Questions of such a step that are written, with all samples and pages."""
    keep_trajectory_steps: NonNegativeInt = 50
    """Newest steps whose trajectories and pages are kept; 0 keeps none."""
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
    """Fields of `data` that differ from the `data` section, such as {validation_path: FILE}."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    budgets: tuple[PositiveInt, ...] = (1024, 512, 256, 128, 64, 32, 16, 8)
    """Visual tokens at which every page is read; for a text memory, its tokens."""
    methods: tuple[Method, ...] = ("visual memory",)
    """The methods to compare; all but raw history share one draft."""
    sets: Annotated[tuple[EvalSet, ...], KEEPS_ANSWERS] = ()
    """Data sets and lengths; empty means the validation questions of `data`."""
    questions: NonNegativeInt = 128
    """Questions of each set, the first ones; 0 means all."""
    samples: PositiveInt = 1
    """Memories, each with its answers, per question."""
    temperature: NonNegativeFloat = 1.0
    """0 means greedy."""
    top_p: Probability = 0.7
    raw_max_tokens: NonNegativeInt = 0
    """Longest document, in tokens, that raw history gives to the model; a longer one loses its middle.
    0 means as much as the model's positions allow."""
    wave_questions: NonNegativeInt = 0
    """Questions that are answered together, which an interruption can lose. 0 means engine.groups."""
    bootstrap: Annotated[NonNegativeInt, KEEPS_ANSWERS] = 1000
    """Resamplings of the questions for the 95 % confidence intervals; 0 means none."""
    report_questions: Annotated[NonNegativeInt, KEEPS_ANSWERS] = 60
    """Questions of each set that report.html shows with their pages; 0 means all."""
    report_mb: Annotated[NonNegativeInt, KEEPS_ANSWERS] = 40
    """Size of all pages in report.html together, in MiB; later ones are left out and counted."""


@dataclasses.dataclass(frozen=True)
class Config:
    run: RunConfig = RunConfig()
    model: Annotated[ModelConfig, DECIDES_ANSWERS] = ModelConfig()
    tokenizer: Annotated[TokenizerConfig, DECIDES_ANSWERS] = TokenizerConfig()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompts: Annotated[PromptsConfig, DECIDES_ANSWERS] = PromptsConfig()
    agent: AgentConfig = AgentConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: Annotated[EngineConfig, DECIDES_ANSWERS] = EngineConfig()
    render: Annotated[RenderSettings, DECIDES_ANSWERS] = dataclasses.field(default_factory=RenderSettings)
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
    eval: Annotated[EvalConfig, DECIDES_ANSWERS] = EvalConfig()
    warmup: WarmupConfig = WarmupConfig()

    @property
    def param_dtype(self) -> str:
        """Type in which parameters are held: float32, but for the frozen base of adapters."""
        return self.lora.base_dtype if self.train.trainable == "lora" else "float32"
