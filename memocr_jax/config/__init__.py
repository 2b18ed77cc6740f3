"""The configuration: frozen dataclasses, read from YAML, overridden on the command line, checked early.

Everything is checked here, before JAX, a tokenizer or a browser is imported. `configs/` holds complete runs.
`sections` and `data` have the settings, `tree` reads and writes YAML, `command` reads command lines, `checks`
finds combinations that cannot work, and `answers` knows which settings decide an evaluation's answers.
"""

from memocr_jax.config.answers import answer_settings
from memocr_jax.config.checks import evaluation_sets, profile_steps, validate
from memocr_jax.config.command import ConfigOption, parse_command
from memocr_jax.config.sections import (
    AgentConfig,
    CheckpointConfig,
    Config,
    EngineConfig,
    EvalConfig,
    EvalSet,
    HealthConfig,
    LogConfig,
    LoraConfig,
    MeshConfig,
    Method,
    ModelConfig,
    OptimizerConfig,
    ProcessesConfig,
    ProfileConfig,
    PromptsConfig,
    RLConfig,
    RunConfig,
    SamplingConfig,
    TokenizerConfig,
    TrainConfig,
    ValidationConfig,
    WarmupConfig,
    WarmupStage,
)
from memocr_jax.config.tree import from_tree, load_config, save_config, to_tree

__all__ = [
    "AgentConfig",
    "CheckpointConfig",
    "Config",
    "ConfigOption",
    "EngineConfig",
    "EvalConfig",
    "EvalSet",
    "HealthConfig",
    "LogConfig",
    "LoraConfig",
    "MeshConfig",
    "Method",
    "ModelConfig",
    "OptimizerConfig",
    "ProcessesConfig",
    "ProfileConfig",
    "PromptsConfig",
    "RLConfig",
    "RunConfig",
    "SamplingConfig",
    "TokenizerConfig",
    "TrainConfig",
    "ValidationConfig",
    "WarmupConfig",
    "WarmupStage",
    "answer_settings",
    "evaluation_sets",
    "from_tree",
    "load_config",
    "parse_command",
    "profile_steps",
    "save_config",
    "to_tree",
    "validate",
]
