"""Command lines: a dataclass describes the options, tyro reads them, and a mistake is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

import tyro

from render.bounds import out_of_bounds
from render.errors import CommandError, nearest
from render.settings import RenderSettings

T = TypeVar("T")
Hidden = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]
"""Type of a field that is no option of the command line."""
_FLAG = r"(?<![\w-])--?[a-zA-Z][\w.-]*"


def read_options(
    options: type[T],
    argv: Sequence[str] | None,
    prog: str,
    *,
    default: T | None = None,
    description: str = "",
    rest: list[str] | None = None,
) -> T:
    """Read a command line.

    Args:
        options: a dataclass, or a union of dataclasses for subcommands. Its fields are the options, with
            their types, their defaults, and the texts below them as help.
        argv: the words after the command; None for the process's own.
        prog: how the command is called, for help and messages.
        default: an object of `options` whose values are the defaults.
        description: what the command does, for help; "" for the docstring of `options`.
        rest: words that are not understood are added here instead of being refused.

    Raises:
        CommandError: an option is unknown, is missing or has an impossible value.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    how: dict[str, Any] = {"prog": prog, "description": description or None}
    how |= {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found, unknown = tyro.cli(options, args=argv, return_unknown_args=True, **how)
    except SystemExit as end:
        if not end.code:  # --help
            raise
        unknown = [word for word in argv if word.startswith("-")]
        found = None
    if rest is not None and found is not None:
        rest += unknown
    elif found is None or unknown:
        known, more = _known(options, argv, how), f" ({prog} --help lists the options)"
        for flag in (word.partition("=")[0] for word in unknown if rest is None):
            if "--help" in known and re.fullmatch(_FLAG, flag) and flag.replace("_", "-") not in known:
                few = len(known) < 30 or get_close_matches(flag, known)
                raise CommandError(f"unknown option {flag}{nearest(flag, known) if few else more}")
        # Without a result it is not unknown words that are wrong: leave them out of the message.
        how |= {"return_unknown_args": found is None}
        raise CommandError(_message(options, argv, how) + more)
    return found


def require_bounds(options: T) -> T:
    """The options, whose numbers are within their bounds (render/bounds.py); else raises CommandError."""
    if message := out_of_bounds(options, "--"):
        name, words = message.split(" ", 1)
        raise CommandError(f"{name.replace('_', '-')} {words}")
    return options


def parse_options(
    options: type[T],
    argv: Sequence[str] | None,
    prog: str,
    *,
    description: str = "",
    rest: list[str] | None = None,
) -> T:
    """Read a command line with `read_options` and check the bounds of its numbers. Raises CommandError."""
    return require_bounds(read_options(options, argv, prog, description=description, rest=rest))


def _known(options: Any, argv: Sequence[str], how: dict[str, Any]) -> list[str]:
    """The options that --help lists, of the subcommand where one is named; none where its name is wrong."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    text = _said(options, [*words, "--help"], how)
    if words and not dataclasses.is_dataclass(options) and text == _said(options, ["--help"], how):
        return []
    return list(dict.fromkeys(re.findall(_FLAG, text.partition("\n")[2])))


def _message(options: Any, argv: Sequence[str], how: dict[str, Any]) -> str:
    """The first paragraph of the box in which tyro shows what is wrong, as one line."""
    lines = [line.strip("│ ") for line in _said(options, argv, how).splitlines()[1:]]
    return " ".join(itertools.takewhile(lambda line: line and not line.startswith(("─", "╰")), lines))


def _said(options: Any, argv: Sequence[str], how: dict[str, Any]) -> str:
    """What tyro prints for a command line that ends with its help or an error."""
    text = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), contextlib.suppress(SystemExit):
        tyro.cli(options, args=argv, **how)
    text.seek(0)
    return text.read()


def settings_of(options: RenderSettings) -> RenderSettings:
    """The render settings among the options of a command that adds its own to them."""
    return RenderSettings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(RenderSettings)})
