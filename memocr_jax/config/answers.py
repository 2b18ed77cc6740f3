"""Which settings decide the answers of an evaluation, and so must be the same when one is continued."""

from __future__ import annotations

import dataclasses
from typing import Any

from render.bounds import hints_of, marks_of
from render.settings import NO_PIXELS

DECIDES_ANSWERS = "decides the answers of an evaluation"
"""Mark (`Annotated`) of a section or a setting. `data` has none, because data are compared set by set."""
KEEPS_ANSWERS = "changes no answer of an evaluation"
"""Mark of a setting that may differ although its section decides the answers."""


def answer_settings(settings: Any, prefix: str = "", decide: bool = False) -> dict[str, Any]:
    """The settings that decide the answers, by their dotted names.

    Args:
        settings: the configuration, or a section of it.
        prefix: put before each name, such as "data.".
        decide: whether fields without a mark are among them.
    """
    found: dict[str, Any] = {}
    for name, hint in hints_of(type(settings)).items():
        marks, value = list(marks_of(hint)), getattr(settings, name)
        free = KEEPS_ANSWERS in marks or NO_PIXELS in marks
        chosen = DECIDES_ANSWERS in marks or (decide and not free)
        if dataclasses.is_dataclass(value):
            found |= answer_settings(value, f"{prefix}{name}.", chosen)
        elif chosen:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
