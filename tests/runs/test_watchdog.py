"""A process that hangs leaves its stacks and ends."""

from __future__ import annotations

import subprocess
import sys

from memocr_jax.runs.watchdog import Watchdog
from tests.waiting import LIMIT_S


def test_watchdog_writes_stacks_and_ends_the_process(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from memocr_jax.runs.watchdog import Watchdog\n"
        "def wait_for_ever():\n    time.sleep(900)\n"
        "with Watchdog(pathlib.Path(sys.argv[1]) / 'stacks' / 'process_0000.txt', 3) as watchdog:\n"
        "    for _ in range(8):\n        time.sleep(0.5)\n        watchdog.beat()\n"
        "    print('beaten', flush=True)\n"
        "    wait_for_ever()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 1 and done.stdout == "beaten\n", "beats kept it alive for more than its limit"
    stacks = (tmp_path / "stacks" / "process_0000.txt").read_text()
    assert "Timeout" in stacks and "wait_for_ever" in stacks


def test_nothing_is_left_of_a_watchdog_that_was_not_needed(tmp_path):
    path = tmp_path / "stacks" / "process_0000.txt"
    with Watchdog(path, 60) as watchdog:
        watchdog.beat()
    assert not path.parent.exists()
