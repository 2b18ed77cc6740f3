"""A renderer on another machine, through the same interface as `RenderPool`."""

from __future__ import annotations

import logging
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from render.base import Renderer
from render.errors import RenderError
from render.settings import MODES, RenderSettings
from render.types import MemoryPage, Mode, PageStatus

if TYPE_CHECKING:
    from render.pool import RenderPool

log = logging.getLogger("render")

CONCURRENCY = 16
"""Requests under way at once: enough to fill the server's sheets."""
MAX_TRIES = 8
MAX_WAIT_S = 20.0


def open_renderer(settings: RenderSettings, mode: Mode = "markdown") -> RenderPool | RemoteRenderer:
    """The renderer that the settings ask for: a server at `settings.url`, or a pool in this process.

    Raises `RenderError` when Chromium is missing or the server does not answer.
    """
    if settings.url:
        return RemoteRenderer(settings, mode)
    from render.pool import RenderPool

    return RenderPool(settings, mode)


class RemoteRenderer(Renderer):
    """Draws memories on a `render.server`, with retries; the same methods as `RenderPool`.

    The server's own settings decide about theme, margins and limits; width and mode travel with each memory.
    A server that stays away costs pages with status FAILED, never an exception.
    """

    def __init__(self, settings: RenderSettings, mode: Mode = "markdown"):
        """Raises `RenderError` when the address is malformed, nothing answers or the token is refused."""
        import httpx

        from render.theme import other_fonts

        if mode not in MODES:
            raise RenderError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}")
        if not settings.url.startswith(("http://", "https://")):
            raise RenderError(f"render.url is {settings.url!r}; it must start with http:// or https://")
        self.settings = settings
        self.mode = mode
        headers = {"Authorization": f"Bearer {settings.token}"} if settings.token else {}
        self._http = httpx.Client(
            base_url=settings.url.rstrip("/"),
            headers=headers,
            timeout=3 * settings.timeout_s + 30,
            trust_env=False,
        )
        try:
            health = self._http.get("/health")
        except httpx.HTTPError as error:
            self._http.close()
            raise RenderError(
                f"render.url is {settings.url!r}, but no renderer answers there ({type(error).__name__});"
                " start one with python -m render.server"
            ) from None
        if health.status_code != 200:
            self._http.close()
            raise RenderError(
                f"render.url is {settings.url!r}, but the server there answers {health.status_code};"
                " check render.url and render.token"
            )
        if other := other_fonts(settings, health.json().get("fonts", {})):
            log.warning("the renderer at %s: %s", settings.url, other)
        self._threads = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="render-client")

    def submit(
        self, memory: str, *, mode: Mode | None = None, width_px: int | None = None
    ) -> Future[MemoryPage]:
        """Future page of one memory; `mode` and `width_px` replace this renderer's own for this memory."""
        try:
            return self._threads.submit(
                self._fetch, memory, mode or self.mode, width_px or self.settings.width_px
            )
        except RuntimeError:
            raise RenderError("this RemoteRenderer is closed; make a new one") from None

    def close(self) -> None:
        """Drop what has not been sent and close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()

    def _fetch(self, memory: str, mode: Mode, width_px: int) -> MemoryPage:
        import httpx

        from render.markdown import clean_text

        # JSON carries no lone surrogates; the server would replace them by the same character.
        body = {"content": clean_text(memory), "mode": mode, "width_px": width_px, "format": "page"}
        problem = ""
        for attempt in range(MAX_TRIES):
            try:
                answer = self._http.post("/render", json=body)
            except httpx.HTTPError as error:
                problem, wait_s = type(error).__name__, 0.25 * 2**attempt
            else:
                if answer.status_code == 200:
                    return _page(answer.content)
                if answer.status_code not in (429, 502, 503, 504):
                    return _refused(answer)
                problem, wait_s = f"HTTP {answer.status_code}", float(answer.headers.get("Retry-After", 1))
            if attempt + 1 < MAX_TRIES:
                time.sleep(min(wait_s, MAX_WAIT_S) * random.uniform(0.5, 1.0))
        return MemoryPage(
            None, PageStatus.FAILED, f"the render server did not answer {MAX_TRIES} times: {problem}"
        )


def _page(data: bytes) -> MemoryPage:
    from render.codec import CodecError, decode_page

    try:
        return decode_page(data)
    except CodecError as error:
        return MemoryPage(None, PageStatus.FAILED, f"the render server sent something else: {error}")


def _refused(answer) -> MemoryPage:
    """The page without pixels that an answer other than 200 stands for."""
    try:
        record = answer.json()
        return MemoryPage(None, PageStatus(record["status"]), record["detail"], record["content_hash"])
    except (ValueError, KeyError, TypeError):
        status = PageStatus.TOO_LARGE if answer.status_code == 413 else PageStatus.FAILED
        return MemoryPage(
            None, status, f"the render server answered {answer.status_code}: {answer.text[:200]}"
        )
