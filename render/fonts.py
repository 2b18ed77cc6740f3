"""The fonts of pages: files of Python packages, so that the same text gives the same pixels on every machine.

The faces of Latin, Greek and Cyrillic text (DejaVu, and STIX as the serif face) are part of the sheet's
document. What these lack (other scripts, emoji, mathematics) is drawn with Noto and STIX Two Math, which
Chromium reads from their folders. A Fontconfig file shows it these folders and no other: fonts of the machine
are never used.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from render.errors import RenderError
from render.markdown import invisible

# (family, file, weight, style). `page-any` stands behind the others: what bold, mono or serif lack, the
# regular face has.
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


def _words(text: str) -> list[str]:
    return text.split()


_SCRIPTS = _words(
    """Arabic Armenian Bengali Devanagari Ethiopic Georgian Gujarati Gurmukhi Hebrew Kannada Khmer Lao
    Malayalam Myanmar Oriya Sinhala Symbols Tamil Telugu Thai"""
)
MATH = "STIX Two Math"
# The families that draw what the faces lack, in this order, with the package and the file of each. Han
# characters have their Chinese forms; the same font has the Japanese and Korean ones, chosen by the language.
FAMILIES = {
    "Noto Sans": ("manimgx-fonts", "NotoSans[wght].ttf"),
    **{f"Noto Sans {name}": ("manimgx-fonts", f"NotoSans{name}[wght].ttf") for name in _SCRIPTS},
    "Noto Emoji": ("manimgx-fonts", "NotoEmoji[wght].ttf"),
    MATH: ("ziamath", "fonts/STIXTwoMath-Regular.ttf"),
    "Noto Sans CJK SC": ("manimgx-fonts-cjk", "NotoSansCJK-VF.otf.ttc"),
}
FALLBACK = ", ".join(["page-any", *(f"'{family}'" for family in FAMILIES)])
"""The CSS list of families that stands where a theme says `page-any`."""


@functools.cache
def _folder(package: str) -> Path:
    """Where a package keeps its files; the package itself is not imported."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise RenderError(
            f"fonts of the pages come with {package}, which is missing; install it with: pip install -e ."
        )
    folder = Path(spec.submodule_search_locations[0])
    return folder / "mpl-data" / "fonts" / "ttf" if package == "matplotlib" else folder


def _files() -> dict[str, list[Path]]:
    """All font files by package. Raises `RenderError` when one is missing."""
    files = {"matplotlib": sorted({_folder("matplotlib") / face[1] for face in FACES})}
    for package, name in FAMILIES.values():
        files.setdefault(package, []).append(_folder(package) / name)
    for package, paths in files.items():
        for path in paths:
            if not path.is_file():
                raise RenderError(
                    f"{path.name}, a font of the pages, is not in the installed {package}; install what"
                    " setup.py names: pip install --force-reinstall -e ."
                )
    return files


@functools.cache
def identity() -> dict[str, str]:
    """`"VERSION DIGEST"` of each package of fonts; the digest is that of the files that are used."""
    found = {}
    for package, paths in _files().items():
        digest = hashlib.sha256()
        for path in paths:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        found[package] = f"{importlib.metadata.version(package)} {digest.hexdigest()[:16]}"
    return found


def difference(remembered: Mapping[str, str], here: Mapping[str, str]) -> str:
    """One line on how an `identity` differs from one that is remembered; empty when it does not."""
    other = [
        name for name, known in remembered.items() if here.get(name, "").split()[-1:] != known.split()[-1:]
    ]
    if not other:
        return ""
    wanted = " ".join(f"{name}=={remembered[name].split()[0]}" for name in other)
    return (
        f"pages were drawn with other fonts ({', '.join(other)}), so that some will look different now;"
        f" for the same pages: pip install {wanted}"
    )


@functools.cache
def face_css() -> str:
    """The @font-face rules with the fonts inside, as data URLs (some megabytes, loaded once per browser)."""
    rules = []
    for family, file, weight, style in FACES:
        data = base64.b64encode((_folder("matplotlib") / file).read_bytes()).decode()
        rules.append(
            f"@font-face{{font-family:{family};font-weight:{weight};font-style:{style};"
            f"src:url(data:font/ttf;base64,{data})}}"
        )
    return "\n".join(rules)


@functools.cache
def fontconfig() -> str:
    """The Fontconfig file of a browser: the folders of the families, and no other."""
    folders = sorted(
        {str(path.parent) for name in {p for p, _ in FAMILIES.values()} for path in _files()[name]}
    )
    # Where there is no home this may not exist, and the folders are read again by each browser.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parts = [f"<dir>{escape(folder)}</dir>" for folder in folders]
    parts.append(f"<cachedir>{escape(cache)}/fontconfig</cachedir>")
    head = '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">'
    return f"{head}<fontconfig>{''.join(parts)}</fontconfig>"


@functools.cache
def _characters(path: Path) -> frozenset[int]:
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True, fontNumber=0) as font:
        return frozenset(font.getBestCmap())


def missing_glyphs(text: str) -> list[str]:
    """Characters of `text` that no font draws, each once, in order of code point."""
    missing = {c for c in text if ord(c) > 0x7E}
    families = [_folder(package) / name for package, name in FAMILIES.values()]
    for path in (_folder("matplotlib") / "DejaVuSans.ttf", *families):
        if missing:
            covered = _characters(path)
            missing = {c for c in missing if ord(c) not in covered and not invisible(c)}
    # A combining mark is drawn with its base: HarfBuzz composes where the font has the composed letter.
    return sorted(c for c in missing if not unicodedata.combining(c) or unicodedata.normalize("NFC", c) == c)
