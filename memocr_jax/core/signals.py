"""Ctrl-C and SIGTERM end a command where the same command can continue later."""

from __future__ import annotations

import signal
import sys
from types import FrameType

PREEMPTED = 75
"""Exit status after SIGTERM: the work so far is saved, start the same command again (EX_TEMPFAIL)."""


class StopSignals:
    """Catches Ctrl-C and SIGTERM while it is entered, as a context manager, in the main thread.

    The first signal is noted in `received`, for a loop that looks there and stops at its next good place. A
    second one raises KeyboardInterrupt.

    Args:
        notice: what is printed to stderr at the first signal.
        at_once: for work that can be cut anywhere: the first signal raises KeyboardInterrupt already.
    """

    def __init__(self, notice: str = "", at_once: bool = False):
        self._notice, self._at_once = notice, at_once
        self.received: int | None = None

    def __enter__(self) -> StopSignals:
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        again = self.received is not None
        self.received = number
        if again or self._at_once:
            raise KeyboardInterrupt
        if self._notice:
            print(f"\n{self._notice} (once more: at once)", file=sys.stderr, flush=True)


def exit_status(received: int | None) -> int:
    """The exit status of a command that saved its work and stopped for a signal, or 0 without one."""
    return {None: 0, signal.SIGINT: 130, signal.SIGTERM: PREEMPTED}[received]
