"""MemOCR (arXiv 2601.21468) in JAX.

`from_pretrained`, `logits` and `generate` (memocr_jax.api) use a Qwen2.5-VL checkpoint; the commands are
`python -m memocr_jax.train`, `.evaluate`, `.convert` and `.bench`.
"""

from typing import Any

__all__ = ["from_pretrained", "generate", "logits"]


def __getattr__(name: str) -> Any:
    """The public functions, loaded at first use: `import memocr_jax` imports no JAX."""
    if name in __all__:
        from memocr_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
