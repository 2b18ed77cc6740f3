"""Bounds on numbers, written at the field of a dataclass: `width_px: Annotated[int, Ge(28)] = 728`.

The marks are annotated_types' (`Ge`, `Gt`, `Le`, `Lt`, `Interval`), which pydantic knows too.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(gt=0, le=1)]


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields by name, with their marks (`Annotated`)."""
    return typing.get_type_hints(cls, include_extras=True)


def marks_of(hint: Any) -> Iterator[Any]:
    """The marks that `Annotated` adds to a type; an `Interval` gives its single bounds."""
    for mark in getattr(hint, "__metadata__", ()):
        yield from mark if isinstance(mark, GroupedMetadata) else (mark,)


def out_of_bounds(settings: Any, prefix: str = "", cls: type | None = None) -> str | None:
    """A message about the first number that lies outside of its bounds, sections within included.

    Args:
        settings: a dataclass.
        prefix: put before the field's name in the message, such as "render.".
        cls: the class whose fields are looked at, a base of the settings' own; None for their own.

    Returns:
        One line with the field, its value and what to use, or None when all numbers are within.
    """
    return next(_problems(settings, prefix, cls or type(settings)), None)


def _problems(settings: Any, prefix: str, cls: type) -> Iterator[str]:
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        hint, value, name = hints[field.name], getattr(settings, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _problems(value, f"{name}.", type(value))
        elif isinstance(value, tuple):
            if typing.get_origin(hint) is Annotated:
                hint = typing.get_args(hint)[0]
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _problems(item, f"{name}[{i}].", type(item))
                else:
                    yield from _problem(typing.get_args(hint)[0], item, f"{name}[{i}]", "")
        elif value is not None:
            known = field.default not in (dataclasses.MISSING, None)
            usual = f" (the default is {field.default})" if known else ""
            yield from _problem(hint, value, name, usual)


def _problem(hint: Any, value: Any, name: str, usual: str) -> Iterator[str]:
    bounds = [_bound(mark, value) for mark in marks_of(hint)]
    if not all(within for within, _ in bounds):
        advice = " and ".join(text for _, text in bounds if text)
        yield f"{name} is {value}; use {advice}{usual}"


def _bound(mark: Any, value: Any) -> tuple[bool, str]:
    """Whether `value` is within one bound, and the bound in words; (True, "") for any other mark."""
    if isinstance(mark, Ge):
        return value >= mark.ge, f"{mark.ge} or more"
    if isinstance(mark, Gt):
        return value > mark.gt, f"more than {mark.gt}"
    if isinstance(mark, Le):
        return value <= mark.le, f"at most {mark.le}"
    if isinstance(mark, Lt):
        return value < mark.lt, f"less than {mark.lt}"
    return True, ""
