"""MemOCR (arXiv 2601.21468) in JAX.

`MemoryAgent` reads a long document and answers from a memory drawn as a page; `from_pretrained`, `logits` and
`generate` use a Qwen2.5-VL checkpoint directly; `read_image` gives the pixels of an image file. The commands
are modules: `python -m memocr_jax.train`, `warmup`, `evaluate`, `analyze`, `ablate`, `story`, `ask`, `serve`,
`convert`, `compile_plan`, `report`, `data`, `build_tokenizer` and `build_nano_tokenizer`. `--help` explains
each.
"""

import importlib
from typing import Any

__all__ = ["MemoryAgent", "from_pretrained", "generate", "logits", "read_image"]

_MODULES = {
    "MemoryAgent": "memocr_jax.agent.memory_agent",
    "from_pretrained": "memocr_jax.agent.open",
    "generate": "memocr_jax.engine.api",
    "logits": "memocr_jax.engine.api",
    "read_image": "memocr_jax.models.image_files",
}


def __getattr__(name: str) -> Any:
    """The public functions, loaded at first use: `import memocr_jax` imports no JAX."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
