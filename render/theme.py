"""Themes: one CSS file draws a page; its text, as a run remembers it, also names the fonts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from render import fonts
from render.errors import RenderError
from render.markdown import REVISION
from render.settings import RenderSettings

THEMES = Path(__file__).with_name("themes")

BASE_CSS = """
html { margin: 0; background: #fff; }
body { margin: 0; overflow: hidden; }
.page { box-sizing: border-box; contain: layout paint style; overflow: clip; overflow-wrap: anywhere;
  background: #fff; color: #000; font-kerning: normal; text-rendering: geometricPrecision; }
.memory { display: flow-root; }
.memory * { max-width: 100%; box-sizing: border-box; position: static; animation: none; transition: none; }
.memory pre, .memory code, .memory kbd, .memory samp, .memory tt { white-space: pre-wrap; }
.memory rp { display: inline; }
.memory a { color: inherit; }
math { font-family: 'STIX Two Math'; font-size: 1.15em; }
math[display="block"] { margin: 0.3em 0; }
menclose[notation~="box"] { border: 1px solid; padding: 0.1em 0.2em; }
menclose[notation*="strike"] { text-decoration: line-through; }
"""
_FONTS_LINE = re.compile(r"\n/\* drawn with the fonts of (\{.*\}) \*/\n?\Z")


def theme_css(settings: RenderSettings) -> str:
    """Text of the theme that the settings name or hold. Raises `RenderError` when there is none."""
    if settings.theme_css:
        return _plain_css(_FONTS_LINE.sub("", settings.theme_css), "render.theme_css: the text")
    name = settings.theme
    shipped = sorted(path.stem for path in THEMES.glob("*.css"))
    path = THEMES / f"{name}.css" if name in shipped else Path(name)
    try:
        css = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RenderError(
            f"render.theme is {name!r}: neither a shipped theme ({', '.join(shipped)}) nor a readable CSS"
            f" file ({type(error).__name__})"
        ) from None
    return _plain_css(css, f"render.theme is {name!r}: the file")


def _plain_css(css: str, where: str) -> str:
    if "</style" in css.lower():
        raise RenderError(f"{where} contains '</style', so it is not plain CSS; remove it")
    return css


def remembered(settings: RenderSettings) -> str:
    """The theme's text with a last line, a comment, that names the fonts: what a checkpoint keeps.

    Fonts that the settings remember already stay. Raises `RenderError` when there is no such theme."""
    if _FONTS_LINE.search(settings.theme_css):
        return settings.theme_css
    return f"{theme_css(settings)}\n/* drawn with the fonts of {json.dumps(fonts.identity())} */\n"


def other_fonts(settings: RenderSettings, here: Mapping[str, str]) -> str:
    """One line on how fonts (`fonts.identity`) differ from those that the theme remembers; empty when they do
    not, or it remembers none."""
    line = _FONTS_LINE.search(settings.theme_css)
    try:
        return fonts.difference(json.loads(line[1]), here) if line else ""
    except (ValueError, AttributeError):
        raise RenderError(
            f"render.theme_css ends in {line[0].strip()!r}, which names no fonts; remove it"
        ) from None


def with_theme_text(settings: RenderSettings) -> RenderSettings:
    """The settings with the theme's text in them, so that they draw the same wherever its file is, or when it
    changes. Raises `RenderError` when there is no such theme."""
    return dataclasses.replace(settings, theme_css=remembered(settings))


def fingerprint(settings: RenderSettings) -> str:
    """Hex digest of everything but the memory, its mode, its width and Chromium that decides pixels."""
    parts = [
        BASE_CSS,
        theme_css(settings),
        *(f"{name}={getattr(settings, name)!r}" for name in PIXEL_FIELDS),
        str(REVISION),
        *(digest.split()[-1] for digest in fonts.identity().values()),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


PIXEL_FIELDS = (
    "scale",
    "margin_px",
    "shrink",
    "max_height_px",
    "viewport_height_px",
    "max_chars",
    "max_elements",
)
