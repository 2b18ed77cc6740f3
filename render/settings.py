"""What a user can set about rendering. Imports nothing heavy: the configuration embeds this class."""

from __future__ import annotations

import dataclasses
from typing import Literal

from render.errors import RenderError

TOKEN_PX = 28
"""Side of one visual token in px: 14-px patches merged 2 x 2 (Qwen2.5-VL, arXiv 2502.13923)."""

MODES = ("markdown", "html")


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How memories become pages. Every field that changes pixels is part of the page's content hash."""

    theme: str = "default"
    """Name of a shipped theme (default, small, upstream) or path of a CSS file."""
    theme_css: str = ""
    """The theme itself, as CSS text, which then counts instead of `theme`: what a checkpoint remembers."""
    width_px: int = 728
    """Width of the page. Multiples of 28 waste no visual token."""
    scale: float = 1.0
    """Zoom of the content within the page: 2 draws everything twice as large on the same width."""
    margin_px: int = 14
    """Blank margin on all four sides."""
    shrink: bool = True
    """Whether a page whose longest line is short becomes narrower (rounded up to 28 px)."""
    max_height_px: int = 8192
    """A page higher than this is cut there and reported as TRUNCATED."""
    viewport_height_px: int = 0
    """0 draws whole pages. Otherwise pages are cut at this height, for checkpoints that were trained on
    cut pages: 656 is what upstream's 720-px viewport leaves of a page."""
    workers: int = 0
    """Number of browsers; 0 chooses by the number of CPU cores."""
    timeout_s: float = 15.0
    """Time limit of one page in the browser, in seconds."""
    cache_dir: str = ""
    """Folder of the page cache on disk; empty keeps pages in memory only."""
    cache_mb: int = 256
    """Bound of the page cache in MiB: of the decoded pages in memory and, apart, of the files on disk.
    0 switches the cache off."""
    max_chars: int = 100_000
    """Longest memory in characters; a longer one is TOO_LARGE."""
    max_elements: int = 20_000
    """Most HTML elements in one memory; more is TOO_LARGE."""
    max_memory_mb: int = 2048
    """Limit of the writable memory of each browser process in MiB; a page that needs more is CRASHED."""
    chromium: str = ""
    """Path of the Chromium executable; empty looks for chromium-headless-shell and chromium on PATH, then
    for Playwright's own."""
    sandbox: Literal["auto", "on", "off"] = "auto"
    """Chromium's own sandbox. auto: on, but for root and where the machine refuses it (no user namespaces),
    which is then said once; on: an error instead."""
    url: str = ""
    """Address of a running `python -m render.server`; empty renders in this process."""
    token: str = ""
    """Bearer token that the server at `url` asks for."""

    def __post_init__(self) -> None:
        positive = ("width_px", "scale", "max_height_px", "timeout_s", "max_chars", "max_elements")
        for name in positive:
            if not getattr(self, name) > 0:
                raise RenderError(f"render.{name} is {getattr(self, name)!r}; it must be above 0")
        for name in ("margin_px", "viewport_height_px", "workers", "cache_mb"):
            if getattr(self, name) < 0:
                raise RenderError(f"render.{name} is {getattr(self, name)!r}; it must be 0 or more")
        if self.max_memory_mb < 512:
            raise RenderError(f"render.max_memory_mb is {self.max_memory_mb}; Chromium needs at least 512")
        if self.width_px - 2 * self.margin_px < TOKEN_PX:
            raise RenderError(
                f"render.margin_px is {self.margin_px}, which leaves less than {TOKEN_PX} px of"
                f" render.width_px {self.width_px}; make the margin smaller or the page wider"
            )
        if self.width_px > 4096 or self.max_height_px > 65_536:
            raise RenderError(
                f"render.width_px {self.width_px} x render.max_height_px {self.max_height_px} is above the"
                " limit of 4096 x 65536"
            )
        if not 0.1 <= self.scale <= 10:
            raise RenderError(f"render.scale is {self.scale}; it must lie in 0.1 .. 10")
        if self.sandbox not in ("auto", "on", "off"):
            raise RenderError(f"render.sandbox is {self.sandbox!r}; it must be auto, on or off")
        if not self.theme:
            raise RenderError("render.theme is empty; name a theme (default, small, upstream) or a CSS file")

    @property
    def height_limit_px(self) -> int:
        """Height at which a page is cut."""
        return min(self.max_height_px, self.viewport_height_px or self.max_height_px)
