"""Draws many memories with several browsers, a thread for each. A page that fails does not harm others."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from render import fonts, theme
from render.base import Renderer
from render.cache import PageCache
from render.chromium import (
    Browser,
    BrowserGone,
    BrowserTimeout,
    PageFault,
    ProtocolError,
    chromium_version,
    find_chromium,
    open_browser,
    sweep_profiles,
)
from render.errors import RenderError
from render.markdown import shows_text, to_html
from render.settings import MODES, RenderSettings
from render.sheet import Drawn, Sheet
from render.types import MemoryPage, Mode, PageStatus

log = logging.getLogger("render")

MAX_TILES = 8
"""Most memories on one sheet."""
MAX_SHEET_CHARS = 60_000
"""Most HTML characters on one sheet; a larger memory is drawn alone, so that it can harm no other."""
MAX_DEATHS = 4
"""A memory is CRASHED when the browser has died this often while it drew that memory alone: several times,
because a browser can be killed from outside. A timeout, or a fault of the page's own process, is final at
once."""
MAX_START_FAILURES = 3
"""Starts of a browser that fail one after the other, after which what waits may be given up,"""
GIVE_UP_S = 30.0
"""once nothing at all was drawn for so long: browsers can be killed from outside while they start, too."""
RECYCLE_PAGES = 4000
"""A browser is replaced after so many pages: its memory grows a little with every page (docs/render.md)."""


@dataclasses.dataclass
class _Job:
    text: str
    mode: Mode
    width_px: int
    content_hash: str
    future: Future
    fragment: str = ""
    alone: bool = False
    deaths: int = 0


class RenderPool(Renderer):
    """Draws memories with several browsers, in order (`render`) or as futures (`submit`).

    Everything a memory can do wrong is a `PageStatus` of its own page. Use it as a context manager, or call
    `close`; a pool left open is closed at interpreter exit, and its browsers end when the process dies.
    """

    def __init__(
        self,
        settings: RenderSettings = RenderSettings(),  # noqa: B008 (frozen)
        mode: Mode = "markdown",
        *,
        workers: int | None = None,
        cache: PageCache | None = None,
    ):
        """`workers` replaces `settings.workers`; `cache` may be shared between pools.

        Raises `RenderError` when Chromium, a font or the theme is missing or Chromium does not start. Only
        the first browser is waited for, and not until it can draw.
        """
        if mode not in MODES:
            raise RenderError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        self.settings = settings
        self.mode = mode
        self._executable = find_chromium(settings.chromium)
        self.chromium_version = chromium_version(self._executable)
        self._fingerprint = theme.fingerprint(settings) + self.chromium_version
        self._cache = cache or PageCache(settings.cache_mb, settings.cache_dir)
        self._queue: deque[_Job] = deque()
        self._in_flight: dict[str, Future] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._browsers: set[Browser] = set()
        self._last_drawn = 0.0
        """When a browser last drew something, in `time.monotonic` seconds."""
        self.restarts = 0
        """Browsers that had to be replaced so far."""
        if other := theme.other_fonts(settings, fonts.identity()):
            log.warning(other)
        sweep_profiles()
        first, self._sandbox = open_browser(self._executable, settings.max_memory_mb, settings.sandbox)
        self._browsers.add(first)
        count = workers or settings.workers or default_workers()
        self._threads = [
            threading.Thread(target=self._work, args=(None if i else first,), name=f"render-{i}", daemon=True)
            for i in range(count)
        ]
        _open_pools.add(self)
        for thread in self._threads:
            thread.start()

    def submit(
        self, memory: str, *, mode: Mode | None = None, width_px: int | None = None
    ) -> Future[MemoryPage]:
        """Future page of one memory; `mode` and `width_px` replace the pool's own for this memory."""
        mode, width_px = mode or self.mode, width_px or self.settings.width_px
        content_hash = self.content_hash(memory, mode, width_px)
        with self._changed:
            if self._closed:
                raise RenderError("this RenderPool is closed; make a new one")
            # Samples of one group often agree: the same memory is drawn once.
            if future := self._in_flight.get(content_hash):
                return future
        future = Future()
        future.set_running_or_notify_cancel()  # shared between callers, so none may cancel it
        if page := self._cache.get(content_hash):
            future.set_result(page)
            return future
        if len(memory) > self.settings.max_chars:
            detail = f"{len(memory)} characters, more than render.max_chars {self.settings.max_chars}"
            future.set_result(MemoryPage(None, PageStatus.TOO_LARGE, detail, content_hash))
            return future
        with self._changed:
            if self._closed:
                raise RenderError("this RenderPool is closed; make a new one")
            self._in_flight[content_hash] = future
            self._queue.append(_Job(memory, mode, width_px, content_hash, future))
            self._changed.notify()
        return future

    def content_hash(self, memory: str, mode: Mode | None = None, width_px: int | None = None) -> str:
        """Hex digest of a memory and everything that decides its pixels."""
        head = f"{self._fingerprint}\0{mode or self.mode}\0{width_px or self.settings.width_px}\0"
        return hashlib.sha256((head + memory).encode("utf-8", "surrogatepass")).hexdigest()

    def close(self) -> None:
        """Stop all browsers and remove their files; memories not yet drawn become FAILED pages."""
        with self._changed:
            self._closed = True
            dropped = list(self._queue)
            self._queue.clear()
            for browser in self._browsers:
                browser.kill()
            self._changed.notify_all()
        for job in dropped:
            self._finish(job, PageStatus.FAILED, "the pool was closed")
        for thread in self._threads:
            thread.join()
        _open_pools.discard(self)

    # --- a worker's life ---

    def _work(self, browser: Browser | None) -> None:
        sheet = None
        failures = drawn = 0
        failing_since = 0.0
        try:
            while not self._closed:
                jobs: list[_Job] = []
                try:
                    if browser is None:
                        browser = self._start()
                    if sheet is None:
                        sheet = Sheet(browser, self.settings)
                    jobs = self._take()
                    self._draw(sheet, jobs)
                    failures = 0
                    self._last_drawn = time.monotonic()
                    drawn += len(jobs)
                    if drawn >= RECYCLE_PAGES:
                        self._drop(browser, counts=False)
                        browser, sheet, drawn = None, None, 0
                except Exception as error:
                    # Whatever it was, no memory may be lost: take a fresh browser, and try each memory alone.
                    if not isinstance(error, BrowserGone | BrowserTimeout | ProtocolError):
                        log.exception("drawing failed unexpectedly")
                    if sheet is None:
                        failing_since = failing_since if failures else time.monotonic()
                        failures += 1
                        idle_s = time.monotonic() - max(failing_since, self._last_drawn)
                        if failures >= MAX_START_FAILURES and idle_s > GIVE_UP_S:
                            self._give_up(error)
                        time.sleep(0.05 * 2 ** min(failures, 5))
                    self._retry(jobs, error)
                    if browser is not None:
                        self._drop(browser)
                    browser = sheet = None
        finally:
            if browser is not None:
                self._drop(browser)

    def _start(self) -> Browser:
        browser = Browser(self._executable, self.settings.max_memory_mb, self._sandbox)
        with self._changed:
            self._browsers.add(browser)
            if not self._closed:
                return browser
        self._drop(browser)
        raise BrowserGone("the pool was closed")

    def _drop(self, browser: Browser, counts: bool = True) -> None:
        with self._changed:
            self._browsers.discard(browser)
            self.restarts += counts and not self._closed
        browser.close()

    def _take(self) -> list[_Job]:
        """Wait for memories and take this worker's share of them; empty when the pool closes."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            share = min(MAX_TILES, -(-len(self._queue) // len(self._threads)))
            jobs: list[_Job] = []
            chars = 0
            while self._queue and len(jobs) < share:
                job = self._queue[0]
                chars += len(job.text)
                if jobs and (job.alone or job.width_px != jobs[0].width_px or chars > MAX_SHEET_CHARS):
                    break
                jobs.append(self._queue.popleft())
                if job.alone:
                    break
            return jobs

    def _draw(self, sheet: Sheet, jobs: list[_Job]) -> None:
        drawable = [job for job in jobs if self._prepare(job)]
        while drawable:
            chars = 0
            now: list[_Job] = []
            for job in drawable:
                chars += len(job.fragment)
                if now and chars > MAX_SHEET_CHARS:
                    break
                now.append(job)
            deadline = time.monotonic() + self.settings.timeout_s
            drawn = sheet.draw([job.fragment for job in now], now[0].width_px, deadline)
            for job, page in zip(now, drawn, strict=True):
                self._deliver(job, page)
            drawable = drawable[len(now) :]

    def _prepare(self, job: _Job) -> bool:
        """Fill in the job's HTML; False when the job is already decided."""
        if job.fragment:
            return True
        try:
            job.fragment = to_html(job.text, job.mode)
            elements = job.fragment.count("<") - job.fragment.count("</")
            if not shows_text(job.fragment):
                self._finish(job, PageStatus.EMPTY, "nothing visible")
            elif elements > self.settings.max_elements:
                limit = self.settings.max_elements
                self._finish(
                    job, PageStatus.TOO_LARGE, f"{elements} elements, more than render.max_elements {limit}"
                )
            else:
                return True
        except Exception as error:  # an error that a memory causes is that memory's own failure
            log.exception("a memory could not be turned into HTML")
            self._finish(job, PageStatus.FAILED, f"{type(error).__name__}: {error}")
        return False

    def _deliver(self, job: _Job, page: Drawn) -> None:
        notes = []
        status = PageStatus.OK
        if page.zoom < 1:
            notes.append(f"drawn at {page.zoom:.2f} of its size to fit the width")
        if missing := fonts.missing_glyphs(job.fragment):
            status = PageStatus.MISSING_GLYPHS
            many = "s" * (len(missing) != 1)
            notes.append(
                f"{len(missing)} character{many} drawn as empty boxes: no font has {_codes(missing)}"
            )
        if page.cut_height_px or page.cut_width_px:
            status = PageStatus.TRUNCATED
            cuts = {"height": page.cut_height_px, "width": page.cut_width_px}
            notes += [f"{px} px of the {side} cut off" for side, px in cuts.items() if px]
        if _is_blank(page.pixels):
            notes.insert(0, "nothing visible: the page has one colour")
            self._finish(job, PageStatus.EMPTY, "; ".join(notes))
        else:
            self._finish(job, status, "; ".join(notes), page)

    def _finish(self, job: _Job, status: PageStatus, detail: str, drawn: Drawn | None = None) -> None:
        pixels, regions = (drawn.pixels, drawn.regions) if drawn else (None, ())
        page = MemoryPage(pixels, status, detail, job.content_hash, regions)
        self._cache.put(page)
        with self._changed:
            self._in_flight.pop(job.content_hash, None)
        job.future.set_result(page)

    def _retry(self, jobs: list[_Job], error: Exception) -> None:
        """Queue each memory of a failed sheet alone; set the status of those that failed alone too often."""
        left = [job for job in jobs if not job.future.done()]
        again = []
        for job in left:
            was_alone = len(left) == 1
            job.alone = True
            job.deaths += was_alone
            if self._closed:
                self._finish(job, PageStatus.FAILED, "the pool was closed")
            elif was_alone and isinstance(error, BrowserTimeout):
                self._finish(job, PageStatus.TIMEOUT, f"not drawn within {self.settings.timeout_s:g} s")
            elif was_alone and (isinstance(error, PageFault) or job.deaths >= MAX_DEATHS):
                self._finish(job, PageStatus.CRASHED, str(error))
            else:
                again.append(job)
        with self._changed:
            self._queue.extendleft(reversed(again))
            self._changed.notify_all()

    def _give_up(self, error: Exception) -> None:
        """Chromium does not start: give the waiting memories a status, so that they do not wait for ever."""
        with self._changed:
            waiting = list(self._queue)
            self._queue.clear()
        for job in waiting:
            self._finish(job, PageStatus.FAILED, f"Chromium does not start: {error}")


def _codes(characters: Sequence[str]) -> str:
    return ", ".join(f"U+{ord(c):04X}" for c in characters[:8]) + ", ..." * (len(characters) > 8)


def _is_blank(pixels: np.ndarray) -> bool:
    """Whether an image u8[H, W, 3] has one colour; row by row, since most show another in the first ones."""
    return not pixels.size or all((row == pixels[0, 0]).all() for row in pixels)


def default_workers() -> int:
    """Browsers that keep this machine's cores busy: one more than cores, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) + 1)


_open_pools: weakref.WeakSet[RenderPool] = weakref.WeakSet()


@atexit.register
def _close_open_pools() -> None:
    for pool in list(_open_pools):
        pool.close()
