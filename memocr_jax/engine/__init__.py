"""The rollout engine: one prefix, K siblings. Token ids go in, token ids come out.

| module | what it holds |
|---|---|
| `groups` | `PromptGroup`: prompts that share a prefix |
| `sizes` | kinds of prompts, the sizes that programs are compiled for, what fits into memory |
| `pool` | what runs on the device: prefill, insert, decode, shrink |
| `sampling` | drawing a token from logits |
| `programs` | `EnginePrograms`: the functions of `pool`, compiled for a model on a mesh |
| `features` | `ImageFeatures`: the features of the groups' images |
| `run` | `PoolRun`: one kind of prompts through one pool |
| `engine` | `Engine`: sorts groups into kinds, and runs one kind after the other |
| `api` | `logits` and `generate` over the arrays of a processor |
"""

from memocr_jax.engine.engine import Engine
from memocr_jax.engine.groups import PromptGroup
from memocr_jax.engine.sizes import Fit, PromptLimits

__all__ = ["Engine", "Fit", "PromptGroup", "PromptLimits"]
