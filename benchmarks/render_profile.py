"""`python -m benchmarks.render_profile`: processor time of a page by stage, as JSON.

One browser, one sheet after the other. Times are processor milliseconds per page, by process, from the
kernel's nanosecond counters. `screenshot` is what the sheet's capture would cost as a screenshot instead
(HeadlessExperimental.beginFrame), through the display compositor, and is not part of a page.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.render import LENGTHS, make_memory
from render import png
from render.bounds import PositiveInt
from render.chromium import find_chromium, open_browser
from render.errors import run_command
from render.markdown import to_html
from render.options import parse_options
from render.settings import RenderSettings
from render.sheet import Sheet


class StageClock:
    """Processor time by stage and process."""

    def __init__(self) -> None:
        """Watches this process and those that are below it now."""
        import psutil

        self._kinds: dict[int | str, str] = {"self": "python"}
        for process in psutil.Process().children(recursive=True):
            kind = next((part[7:] for part in process.cmdline() if part.startswith("--type=")), "browser")
            self._kinds[process.pid] = kind
        self.ns: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def time(self, stage: str, work: Callable):
        """Do `work`, add what it cost in every process to `stage`, return its result."""
        before = self._now()
        result = work()
        for kind, now in self._now().items():
            self.ns[stage][kind] += now - before[kind]
        return result

    def _now(self) -> dict[str, int]:
        times: dict[str, int] = defaultdict(int)
        for pid, kind in self._kinds.items():
            times[kind] += _ns(pid)
        return times

    def per_page_ms(self, pages: int) -> dict[str, dict[str, float]]:
        """Milliseconds per page by stage and process."""
        return {
            stage: {name: round(ns / pages / 1e6, 2) for name, ns in costs.items() if ns > 1e4 * pages}
            for stage, costs in self.ns.items()
        }


def _ns(pid: int | str) -> int:
    tasks = Path("/proc", str(pid), "task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks)


def run(settings: RenderSettings, words: int, pages: int, tiles: int) -> dict:
    """Draw `pages` memories, `tiles` to a sheet, and return the JSON object that the command prints."""
    browser, _ = open_browser(find_chromium(settings.chromium), settings.max_memory_mb, settings.sandbox)
    try:
        sheet = Sheet(browser, settings)
        clock = StageClock()
        texts = [make_memory(words, seed) for seed in range(pages)]
        for start in range(0, pages + tiles, tiles):  # the first sheet warms up
            if start == tiles:
                clock = StageClock()
            group = texts[max(0, start - tiles) : start] or texts[:tiles]
            _draw(sheet, group, clock, time.monotonic() + 120)
    finally:
        browser.close()
    stages = clock.per_page_ms(pages)
    total = sum(sum(costs.values()) for stage, costs in stages.items() if stage != "screenshot")
    return {
        "words": words,
        "pages": pages,
        "tiles": tiles,
        "cpu_ms_per_page": round(total, 2),
        "stages": stages,
    }


def _draw(sheet: Sheet, texts: list[str], clock: StageClock, deadline: float) -> None:
    width = sheet.settings.width_px
    fragments = clock.time("markdown", lambda: [to_html(text, "markdown") for text in texts])
    layout = clock.time("layout", lambda: sheet.lay_out(fragments, width, deadline))
    pages = [np.empty((page["height"], page["width"], 3), np.uint8) for page in layout]
    pages.append(np.empty((1, width, 3), np.uint8))
    height = sum(len(page) for page in pages)
    clock.time("paint", lambda: (sheet.resize(width, height, deadline), sheet.paint(deadline)))
    data = clock.time("replay", lambda: sheet.replay(deadline))
    clock.time("decode", lambda: png.decode_into(data, pages))
    clock.time("screenshot", lambda: sheet.screenshot(deadline))


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the processor time of a page goes; prints JSON."""

    length: Literal["short", "typical", "long"] = "typical"
    pages: PositiveInt = 160
    tiles: PositiveInt = 8
    """Memories per sheet."""


def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for; prints JSON."""
    options = parse_options(Options, argv, "python -m benchmarks.render_profile")
    result = run(RenderSettings(), LENGTHS[options.length], options.pages, options.tiles)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    run_command(main)
