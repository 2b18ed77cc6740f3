"""The exception for mistakes that a user can correct."""

from __future__ import annotations

from collections.abc import Callable

from memocr_jax.core.gpu_memory import claim_gpu_memory
from render import errors
from render.errors import CommandError, nearest

__all__ = ["UserError", "nearest", "run_command"]


class UserError(CommandError):
    """Bad input: the message names the field, the value and the fix, in one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`, turning a user's error into one line on stderr and exit status 2."""
    claim_gpu_memory()
    errors.run_command(main)
