"""Fetches functions of JAX that are not public by name, so that a JAX without them is a clear error."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import jax

from memocr_jax.core.errors import UserError

TESTED = "0.10.2 and 0.11.2"
"""Versions of JAX whose internals are known to have the shape that is used here."""


def internal(implementation: str, module: str, name: str, parameters: tuple[str, ...] = ()) -> Any:
    """The function or class `name` of a module of JAX.

    Args:
        implementation: the value of model.attention that needs it.
        parameters: names of arguments that it must take.

    Raises:
        UserError: this version of JAX does not have it, or it takes other arguments.
    """
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise _other_shape(implementation, f"no {module}.{name}") from None
    missing = [parameter for parameter in parameters if parameter not in inspect.signature(found).parameters]
    if missing:
        raise _other_shape(implementation, f"{module}.{name} without the argument {missing[0]}")
    return found


def _other_shape(implementation: str, what: str) -> UserError:
    return UserError(
        f"model.attention is {implementation}, but JAX {jax.__version__} has {what}; use a JAX that it was "
        f"tested with ({TESTED}), or set model.attention to xla"
    )
