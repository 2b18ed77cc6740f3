"""Command-line options for every field of `RenderSettings`, shared by the renderer's commands."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable

from render.errors import RenderError
from render.settings import RenderSettings


def add_settings(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    """Add `--width-px` and so on to a parser, with the fields' own defaults."""
    group = parser.add_argument_group("rendering (see render/settings.py)")
    for field in dataclasses.fields(RenderSettings):
        if field.name in leave_out or field.name == "theme_css":
            continue  # a text, not for a command line
        kind = type(field.default)
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": "X"}
        group.add_argument(
            f"--{field.name.replace('_', '-')}", default=field.default, help="default: %(default)s", **how
        )


def settings_of(arguments: argparse.Namespace) -> RenderSettings:
    """The settings that the parsed options amount to. Raises `RenderError` for an impossible value."""
    names = (field.name for field in dataclasses.fields(RenderSettings))
    return RenderSettings(**{name: getattr(arguments, name) for name in names if hasattr(arguments, name)})


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command, turning `RenderError` into one line on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except RenderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
