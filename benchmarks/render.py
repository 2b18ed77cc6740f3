"""`python -m benchmarks.render`: pages per second of upstream's way (a page per request) and of this
renderer.

Both draw the same memories in one run, with the same Chromium. Upstream's way is rebuilt here: one browser
and one synchronous Playwright per thread, a new page per memory, Markdown into a document with upstream's
style, a screenshot of the content's box, which the 720-px viewport cuts off. Ours draws whole pages,
sanitised, with the network refused. The cache is off. Prints JSON; `cpu_ms_per_page` counts this process and
all below it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

from annotated_types import Ge

from render.bounds import NonNegativeInt, PositiveInt
from render.chromium import chromium_version, find_chromium
from render.errors import run_command
from render.options import parse_options
from render.pool import RenderPool, default_workers
from render.settings import RenderSettings

LENGTHS = {"short": 60, "typical": 220, "long": 1200}
"""Words of a memory."""
_WORDS = (
    "the of and in was to a by for his her film river harbour city museum university director composer novel"
    " album population district railway council battle treaty born founded released awarded located studied"
    " northern southern early late first second national royal Amsterdam Trieste Almqvist Larsson Halvorsen"
    " Montgomery Winchester 1923 1951 2008 12,400 known later between which became where"
)
_UPSTREAM_STYLE = """
body { background-color: white; margin: 2em; padding: 2em; }
.content { padding: 0; display: inline-block; white-space: pre-wrap; }
h1, h2, h3, h4, h5, h6, p, ul, ol, blockquote { margin: 0.5em 0; padding: 0; }
ul, ol { margin-left: 20px; }
code { background-color: #f4f4f4; padding: 2px 4px; border-radius: 3px; font-family: monospace; }
pre { background-color: #f4f4f4; padding: 10px; border-radius: 5px; }
"""


def make_memory(words: int, seed: int) -> str:
    """A memory of about so many words as models write them: title, headings, lists with bold names."""
    rng = random.Random(seed)
    vocabulary = _WORDS.split()
    lines = ["# " + " ".join(rng.choices(vocabulary, k=5)), ""]
    count = 5
    while count < words:
        lines += ["## " + " ".join(rng.choices(vocabulary, k=3)), ""]
        count += 3
        for _ in range(rng.randint(3, 6)):
            if count >= words:
                break
            name, fact = rng.choices(vocabulary, k=2), rng.choices(vocabulary, k=rng.randint(6, 16))
            lines.append(f"- **{' '.join(name)}**: {' '.join(fact)}")
            count += 2 + len(fact)
        lines.append("")
    return "\n".join(lines)


def tree_cpu_s() -> float:
    """Processor seconds used so far by this process and the living ones below it."""
    import psutil

    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


class Upstream:
    """The page-per-request way: one browser and one synchronous Playwright per thread."""

    def __init__(self, executable: str, threads: int):
        self._executable = executable
        self._local = threading.local()
        self._closing: list = []
        self._threads = ThreadPoolExecutor(threads)
        self._count = threads

    def warm_up(self, memory: str) -> None:
        """Start every thread's browser and draw one page with it."""
        barrier = threading.Barrier(self._count)
        list(self._threads.map(lambda _: (barrier.wait(), self.draw(memory)), range(self._count)))

    def render(self, memories: list[str]) -> list[bytes]:
        """One PNG per memory, in order."""
        return list(self._threads.map(self.draw, memories))

    def draw(self, memory: str) -> bytes:
        """One memory to a PNG of what the viewport shows of it."""
        from render.markdown import markdown_html

        if not hasattr(self._local, "browser"):
            self._start()
        html = markdown_html(memory)  # upstream's own parser is slower
        page = self._local.browser.new_page()
        try:
            page.set_content(
                f'<!DOCTYPE html><html><head><meta charset="utf-8"><style>{_UPSTREAM_STYLE}</style></head>'
                f'<body><div class="content">{html}</div></body></html>'
            )
            page.wait_for_load_state("domcontentloaded")
            box = page.locator(".content").bounding_box()
            return page.screenshot(clip=box, omit_background=True, type="png")
        finally:
            page.close()

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._local.playwright = sync_playwright().start()
        flags = ["--disable-dev-shm-usage", "--disable-gpu", "--no-sandbox"]
        self._local.browser = self._local.playwright.chromium.launch(
            executable_path=self._executable, headless=True, args=flags
        )

    def close(self) -> None:
        """Close every thread's browser, in its own thread, as Playwright demands."""
        barrier = threading.Barrier(self._count)

        def stop(_):
            barrier.wait()
            if hasattr(self._local, "browser"):
                self._local.browser.close()
                self._local.playwright.stop()

        list(self._threads.map(stop, range(self._count)))
        self._threads.shutdown()


def measure(render, memories: list[str]) -> dict:
    """Throughput and processor time of `render(memories)`."""
    cpu, start = tree_cpu_s(), time.perf_counter()
    render(memories)
    wall = time.perf_counter() - start
    return {
        "pages": len(memories),
        "pages_per_s": round(len(memories) / wall, 2),
        "cpu_ms_per_page": round((tree_cpu_s() - cpu) / len(memories) * 1e3, 2),
    }


def latencies(draw, memories: list[str]) -> dict:
    """Milliseconds of one page after the other, nothing else under way."""
    taken = []
    for memory in memories:
        start = time.perf_counter()
        draw(memory)
        taken.append((time.perf_counter() - start) * 1e3)
    cuts = statistics.quantiles(taken, n=20, method="inclusive")
    return {"single_p50_ms": round(statistics.median(taken), 1), "single_p95_ms": round(cuts[-1], 1)}


def _run_upstream(executable: str, threads: int, texts: list[str], pages: int) -> dict:
    upstream = Upstream(executable, threads)
    try:
        upstream.warm_up(texts[0])
        result = measure(upstream.render, texts[:pages])
        return result | latencies(lambda text: upstream.render([text]), texts[-20:])
    finally:
        upstream.close()


def _run_ours(settings: RenderSettings, texts: list[str], pages: int) -> dict:
    with RenderPool(settings) as pool:
        pool.render([f"{i} {text}" for i, text in enumerate(texts[-40:])])  # every browser has drawn
        result = measure(pool.render, texts[:pages])
        result |= latencies(lambda text: pool.render([text]), texts[-40:])
        heights, widths = zip(*(page.pixels.shape[:2] for page in pool.render(texts[:32])), strict=True)
    return result | {
        "mean_height_px": round(statistics.mean(heights)),
        "mean_width_px": round(statistics.mean(widths)),
    }


def run(settings: RenderSettings, upstream_threads: int, pages: int, upstream_pages: int, lengths) -> dict:
    """The whole comparison, as the JSON object that the command prints."""
    executable = find_chromium(settings.chromium)
    results = {}
    for name in lengths:
        texts = [make_memory(LENGTHS[name], seed) for seed in range(pages + 40)]
        upstream = _run_upstream(executable, upstream_threads, texts, upstream_pages)
        ours = _run_ours(settings, texts, pages)
        results[name] = {
            "words": LENGTHS[name],
            "upstream": upstream,
            "ours": ours,
            "ratio": round(ours["pages_per_s"] / upstream["pages_per_s"], 2),
            "cpu_ratio": round(upstream["cpu_ms_per_page"] / ours["cpu_ms_per_page"], 2),
        }
    return {
        "chromium": chromium_version(executable),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "workers": settings.workers or default_workers(),
        "upstream_threads": upstream_threads,
        "results": results,
    }


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the page-per-request way with this renderer on the same memories; prints JSON."""

    pages: Annotated[int, Ge(2)] = 480
    """Memories for ours."""
    upstream_pages: Annotated[int, Ge(2)] = 60
    """Memories for the other."""
    upstream_threads: PositiveInt = 4
    workers: NonNegativeInt = 0
    """Browsers; 0 chooses by the number of cores."""
    lengths: tuple[Literal["short", "typical", "long"], ...] = tuple(LENGTHS)
    chromium: str = ""
    """Path of the Chromium; default: as RenderSettings."""


def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for; prints JSON."""
    options = parse_options(Options, argv, "python -m benchmarks.render")
    settings = RenderSettings(workers=options.workers, cache_mb=0, chromium=options.chromium)
    result = run(
        settings, options.upstream_threads, options.pages, options.upstream_pages, list(options.lengths)
    )
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    run_command(main)
