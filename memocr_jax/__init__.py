"""MemOCR (arXiv 2601.21468) in JAX.

`from_pretrained`, `logits` and `generate` (memocr_jax.api) use a Qwen2.5-VL checkpoint; the commands are
`python -m memocr_jax.train`, `.evaluate`, `.convert` and `.bench`.
"""

from typing import Any

__all__ = ["from_pretrained", "generate", "logits"]


def __getattr__(name: str) -> Any:
    # Lazily: `import memocr_jax` must not import JAX.
    if name in __all__:
        from memocr_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'memocr_jax' has no attribute {name!r}")
