"""Ends a process that hangs, and leaves the stacks of its threads."""

from __future__ import annotations

import contextlib
import faulthandler
from pathlib import Path
from typing import Any, TextIO


class Watchdog:
    """Writes the stacks of all threads to `path` when nothing moves for `limit_s` seconds (0: never), and
    ends the process with status 1, so that a launcher starts all of them anew.

    The timer is faulthandler's, a thread outside Python: it also works while an extension holds the lock.
    """

    def __init__(self, path: Path, limit_s: float):
        self._path, self._limit_s = path, limit_s
        self._file: TextIO | None = None

    def __enter__(self) -> Watchdog:
        if self._limit_s:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            self.beat()
        return self

    def beat(self) -> None:
        """Start waiting anew."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()
                with contextlib.suppress(OSError):  # another process has stacks there
                    self._path.parent.rmdir()
