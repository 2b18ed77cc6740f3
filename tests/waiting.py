"""How tests wait for other processes and threads: until something happens, not for some time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

LIMIT_S = 900
"""The longest that a test waits for anything. Only what hangs takes so long, on a loaded machine too."""


def wait_until(happened: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait until `happened()` is true; the test fails at LIMIT_S, or when `process` ends before."""
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen in {LIMIT_S} s"
        assert process is None or process.poll() is None, f"the process ended: {process.communicate()[0]}"
        time.sleep(0.02)
