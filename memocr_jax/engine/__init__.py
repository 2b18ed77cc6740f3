"""The rollout engine: one prefix, K siblings. Token ids in, token ids out.

| module | what |
|---|---|
| `prompts` | `PromptGroup`: what is asked; images as the model takes them |
| `plan` | kinds of prompts, the sizes that programs are compiled for, what fits into memory |
| `pool` | what runs on the device: prefill, insert, decode, shrink |
| `engine` | `Engine`: the loop that keeps the pool full |
"""

from memocr_jax.engine.engine import Engine
from memocr_jax.engine.prompts import PromptGroup, image_grid, image_rows, most_windows
from memocr_jax.engine.sizes import Fit, PromptLimits

__all__ = ["Engine", "Fit", "PromptGroup", "PromptLimits", "image_grid", "image_rows", "most_windows"]
