"""MemOCR (arXiv 2601.21468) in JAX.

`from_pretrained`, `logits` and `generate` (memocr_jax.api) use a Qwen2.5-VL checkpoint; the commands are
`python -m memocr_jax.train`, `.evaluate`, `.convert` and `.bench`.
"""

import sys
from types import ModuleType
from typing import Any

__all__ = ["from_pretrained", "generate", "logits"]


class _Package(ModuleType):
    """The package, with the public functions loaded at first use: `import memocr_jax` imports no JAX."""

    def __getattr__(self, name: str) -> Any:
        if name in __all__:
            from memocr_jax import api

            return getattr(api, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    @property
    def generate(self) -> Any:
        """The function. A property, because importing the submodule of this name sets the attribute too."""
        from memocr_jax import api

        return api.generate

    @generate.setter
    def generate(self, submodule: ModuleType) -> None:
        pass  # it stays importable: sys.modules holds it


sys.modules[__name__].__class__ = _Package
