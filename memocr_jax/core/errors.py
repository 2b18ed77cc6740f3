"""The one exception for what a user can put right."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from memocr_jax.core.gpu_memory import claim_gpu_memory
from render.errors import RenderError


class UserError(Exception):
    """Bad input: the message names the field, the value and the fix, in one line.

    Command lines print it without a traceback and exit with status 2 (`run_command`).
    """


def nearest(name: str, known: Sequence[str]) -> str:
    """A ' (did you mean X?)' suffix for an unknown `name`, or the list of what is known."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(map(str, known))})"


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command line's `main`, turning a user's error into one line on stderr and exit status 2."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # libraries' advice to programmers
    claim_gpu_memory()
    try:
        sys.exit(main() or 0)
    except (UserError, RenderError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
