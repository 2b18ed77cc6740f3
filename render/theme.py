"""Themes and fonts: one CSS file draws a page, and the fonts travel with it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import importlib.util
import unicodedata
from pathlib import Path

from render.errors import RenderError
from render.markdown import invisible
from render.settings import RenderSettings

THEMES = Path(__file__).with_name("themes")

# (family, file, weight, style): DejaVu, and STIX as the serif face (as wide as Times). `page-any` stands
# behind the others: what bold, mono or serif lack, the regular face has.
FACES = (
    ("page-sans", "DejaVuSans.ttf", "400", "normal"),
    ("page-sans", "DejaVuSans-Bold.ttf", "700", "normal"),
    ("page-sans", "DejaVuSans-Oblique.ttf", "400", "italic"),
    ("page-sans", "DejaVuSans-BoldOblique.ttf", "700", "italic"),
    ("page-mono", "DejaVuSansMono.ttf", "400", "normal"),
    ("page-mono", "DejaVuSansMono-Bold.ttf", "700", "normal"),
    ("page-serif", "STIXGeneral.ttf", "400", "normal"),
    ("page-serif", "STIXGeneralBol.ttf", "700", "normal"),
    ("page-serif", "STIXGeneralItalic.ttf", "400", "italic"),
    ("page-serif", "STIXGeneralBolIta.ttf", "700", "italic"),
    ("page-any", "DejaVuSans.ttf", "1 1000", "normal"),
)

BASE_CSS = """
html { margin: 0; background: #fff; }
body { margin: 0; overflow: hidden; }
.page { box-sizing: border-box; contain: layout paint style; overflow: clip; overflow-wrap: anywhere;
  background: #fff; color: #000; font-kerning: normal; text-rendering: geometricPrecision; }
.memory { display: flow-root; }
.memory * { max-width: 100%; box-sizing: border-box; position: static; animation: none; transition: none; }
.memory pre, .memory code, .memory kbd, .memory samp, .memory tt { white-space: pre-wrap; }
.memory details > * { display: block; }
.memory a { color: inherit; }
"""


def theme_css(settings: RenderSettings) -> str:
    """Text of the theme that the settings name or hold. Raises `RenderError` when there is none."""
    if settings.theme_css:
        return _plain_css(settings.theme_css, "render.theme_css: the text")
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


def with_theme_text(settings: RenderSettings) -> RenderSettings:
    """The settings with the theme's text in them, so that they draw the same wherever its file is, or when it
    changes. Raises `RenderError` when there is no such theme."""
    return dataclasses.replace(settings, theme_css=theme_css(settings))


def fingerprint(settings: RenderSettings) -> str:
    """Hex digest of everything but the memory, its mode, its width and Chromium that decides pixels."""
    parts = [
        BASE_CSS,
        theme_css(settings),
        *(f"{name}={getattr(settings, name)!r}" for name in PIXEL_FIELDS),
        *(file + font_digest(file) for file in sorted({face[1] for face in FACES})),
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


@functools.cache
def font_folder() -> Path:
    """Folder of the DejaVu fonts that matplotlib ships; matplotlib itself is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf") if spec else None
    if folder is None or not (folder / "DejaVuSans.ttf").is_file():
        raise RenderError(
            "the fonts of the pages come with matplotlib, which is missing: pip install matplotlib"
        )
    return folder


@functools.cache
def font_digest(file: str) -> str:
    """Hex digest of one shipped font file."""
    return hashlib.sha256((font_folder() / file).read_bytes()).hexdigest()


@functools.cache
def font_css() -> str:
    """The @font-face rules with the fonts inside, as data URLs (some megabytes, loaded once per browser)."""
    rules = []
    for family, file, weight, style in FACES:
        data = base64.b64encode((font_folder() / file).read_bytes()).decode()
        rules.append(
            f"@font-face{{font-family:{family};font-weight:{weight};font-style:{style};"
            f"src:url(data:font/ttf;base64,{data})}}"
        )
    return "\n".join(rules)


@functools.cache
def _covered() -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(font_folder() / "DejaVuSans.ttf", lazy=True) as font:
        return frozenset(font.getBestCmap())


def missing_glyphs(text: str) -> list[str]:
    """Characters of `text` that the shipped fonts cannot draw, each once, in order of code point."""
    covered = _covered()
    missing = {c for c in set(text) if ord(c) > 0x7E and ord(c) not in covered and not invisible(c)}
    # A combining mark is drawn with its base: HarfBuzz composes where the font has the composed letter.
    return sorted(c for c in missing if not unicodedata.combining(c) or unicodedata.normalize("NFC", c) == c)
