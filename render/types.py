"""The types that the renderer returns."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Mode = Literal["markdown", "html"]


class PageStatus(enum.StrEnum):
    """How a memory fared. The first three carry pixels, the others do not."""

    OK = "OK"
    TRUNCATED = "TRUNCATED"  # something lies outside the page; detail says how much
    MISSING_GLYPHS = "MISSING_GLYPHS"  # no font has some characters, drawn as empty boxes; detail: which
    EMPTY = "EMPTY"  # nothing visible: empty, whitespace, only markup
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"
    TOO_LARGE = "TOO_LARGE"  # over a limit of the settings; detail names it
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True)
class Region:
    """Box of one block of text on the page, in px of the page."""

    kind: Literal["heading", "body"]
    level: int
    """1..6 for headings, 0 for body text."""
    x: int
    y: int
    width: int
    height: int
    text: str


@dataclasses.dataclass(frozen=True)
class MemoryPage:
    """A memory, drawn. Usable if and only if `pixels` is not None."""

    pixels: np.ndarray | None
    """u8[H, W, 3], read-only."""
    status: PageStatus
    detail: str = ""
    content_hash: str = ""
    """Hex digest of the memory and of everything that decides its pixels."""
    regions: tuple[Region, ...] = ()
