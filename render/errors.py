"""Errors that a command shows its user as one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches


class CommandError(Exception):
    """A mistake that the user of a command can correct.

    The message is one line that names the field, the value and the fix. A command line prints it without a
    traceback and exits with status 2 (`run_command`).
    """


class RenderError(CommandError):
    """The renderer cannot work as asked: bad setting, missing Chromium, unreachable server.

    A single memory that cannot be drawn is never an exception: it is a `PageStatus`.
    """


def nearest(name: str, known: Sequence[str]) -> str:
    """A ' (did you mean X?)' suffix for an unknown `name`, or the list of what is known."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(map(str, known))})"


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`, turning a user's error into one line on stderr and exit status 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # libraries' advice to programmers
    try:
        sys.exit(main() or 0)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
