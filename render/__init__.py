"""Draws memories as pages: Markdown or HTML in, pixels out, through headless Chromium. It knows no JAX.

    from render import RenderPool
    with RenderPool() as pool:
        pages = pool.render(["# Amsterdam", "born in **1923**"])

`settings`, `types`, `errors` and `base` import nothing heavy. `markdown` turns a memory into safe HTML (with
`literal` and `mathematics`), `theme` styles it, and `fonts` finds the fonts. `chromium` starts a browser,
`sheet` draws many memories at once (`png` decodes them), `pool` uses several browsers, and `cache` keeps
pages. `views` fits a page to a budget of visual tokens. `server` and `client` go over HTTP (`http` is shared
by servers, `codec` writes a page as bytes). See docs/render.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from render.errors import RenderError
from render.settings import RenderSettings
from render.types import MemoryPage, PageStatus, Region

if TYPE_CHECKING:
    from render.client import RemoteRenderer, open_renderer
    from render.pool import RenderPool

__all__ = [
    "MemoryPage",
    "PageStatus",
    "Region",
    "RemoteRenderer",
    "RenderError",
    "RenderPool",
    "RenderSettings",
    "open_renderer",
]

# Loaded on first use, so that reading a configuration (which embeds RenderSettings) stays quick.
_LAZY = {"RenderPool": "render.pool", "RemoteRenderer": "render.client", "open_renderer": "render.client"}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'render' has no attribute {name!r}")
