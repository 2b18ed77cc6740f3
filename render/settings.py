"""The settings of the renderer. This module imports nothing heavy, because the configuration embeds it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from render.bounds import NonNegativeInt, PositiveFloat, PositiveInt, out_of_bounds
from render.errors import RenderError

TOKEN_PX = 28
"""Side of one visual token in px: 14-px patches merged 2 x 2 (Qwen2.5-VL, arXiv 2502.13923)."""

NO_PIXELS = "changes no pixel"
"""Mark (`Annotated`) of a setting that changes no page."""

MODES = ("markdown", "html")


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How memories become pages. Every field that changes pixels is part of the page's content hash."""

    theme: str = "default"
    """Name of a shipped theme (default, small, upstream, nano, nano_tall) or path of a CSS file."""
    theme_css: str = ""
    """The theme itself as CSS text, which replaces `theme`. Checkpoints keep it."""
    width_px: Annotated[int, Interval(ge=TOKEN_PX, le=4096)] = 728
    """Width of the page. Multiples of 28 waste no visual token."""
    scale: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    """Zoom of the content within the page: 2 draws everything twice as large on the same width."""
    margin_px: NonNegativeInt = 14
    """Blank margin on all four sides."""
    shrink: bool = True
    """Whether a page whose longest line is short becomes narrower (rounded up to 28 px)."""
    max_height_px: Annotated[int, Interval(ge=1, le=65_536)] = 8192
    """A page higher than this is cut there and reported as TRUNCATED."""
    viewport_height_px: NonNegativeInt = 0
    """0 draws whole pages. Otherwise pages are cut at this height, for checkpoints that were trained on
    cut pages: 656 is what upstream's 720-px viewport leaves of a page."""
    workers: Annotated[NonNegativeInt, NO_PIXELS] = 0
    """Number of browsers; 0 chooses by the number of CPU cores."""
    timeout_s: Annotated[PositiveFloat, NO_PIXELS] = 15.0
    """Time limit of one page in the browser, in seconds."""
    cache_dir: Annotated[str, NO_PIXELS] = ""
    """Folder of the page cache on disk; empty keeps pages in memory only."""
    cache_mb: Annotated[NonNegativeInt, NO_PIXELS] = 256
    """Bound of the page cache in MiB: of the decoded pages in memory and, apart, of the files on disk.
    0 switches the cache off."""
    max_chars: PositiveInt = 100_000
    """Longest memory in characters; a longer one is TOO_LARGE."""
    max_elements: PositiveInt = 20_000
    """Most HTML elements in one memory; more is TOO_LARGE."""
    max_memory_mb: Annotated[int, Ge(512), NO_PIXELS] = 2048
    """Limit of the writable memory of each browser process in MiB; a page that needs more is CRASHED.
    Chromium itself needs 512."""
    chromium: Annotated[str, NO_PIXELS] = ""
    """Path of the Chromium executable; empty looks for chromium-headless-shell and chromium on PATH, then
    for Playwright's own."""
    sandbox: Annotated[Literal["auto", "on", "off"], NO_PIXELS] = "auto"
    """Chromium's own sandbox. auto: on, except for root and where the machine refuses it (no user
    namespaces), with one warning; on: that is an error."""
    url: Annotated[str, NO_PIXELS] = ""
    """Address of a running `python -m render.server`; empty renders in this process."""
    token: Annotated[str, NO_PIXELS] = ""
    """Bearer token that the server at `url` asks for."""

    def __post_init__(self) -> None:
        if message := out_of_bounds(self, "render.", RenderSettings):
            raise RenderError(message)
        if self.width_px - 2 * self.margin_px < TOKEN_PX:
            raise RenderError(
                f"render.margin_px is {self.margin_px}, which leaves less than {TOKEN_PX} px of"
                f" render.width_px {self.width_px}; make the margin smaller or the page wider"
            )
        if self.sandbox not in ("auto", "on", "off"):
            raise RenderError(f"render.sandbox is {self.sandbox!r}; it must be auto, on or off")
        if not self.theme:
            raise RenderError("render.theme is empty; name a theme, such as default, or a CSS file")

    @property
    def height_limit_px(self) -> int:
        """Height at which a page is cut."""
        return min(self.max_height_px, self.viewport_height_px or self.max_height_px)
