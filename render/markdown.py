"""Turns a memory's text into safe HTML: from CommonMark with tables, strikethrough and the inline colours and
sizes that models write, or from the model's own HTML. Both pass one allow-list of elements, attributes and
CSS."""

from __future__ import annotations

import functools
import html
import re
import unicodedata

import comrak
import nh3

from render import literal, mathematics
from render.types import Mode


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTS = _words(
    """a abbr b big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em
    figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i ins kbd li main mark nav ol p pre q rp rt
    ruby s samp section article aside small span strike strong sub summary sup table tbody td tfoot th
    thead time tr tt u ul var wbr"""
)
_CLEANED = ELEMENTS | mathematics.ELEMENTS
# Elements whose text is no part of the memory: it is dropped with them.
DROPPED_WITH_TEXT = _words(
    """script style title iframe object embed template noscript noembed noframes svg audio video canvas
    applet select textarea"""
)
ATTRIBUTES = {
    "*": {"style", "align", "dir", "lang"},
    "font": {"color", "size"},
    "ol": {"start", "type", "reversed"},
    "li": {"value"},
    "td": {"colspan", "rowspan", "valign", "bgcolor"},
    "th": {"colspan", "rowspan", "valign", "bgcolor"},
    "table": {"border", "cellpadding", "cellspacing", "bgcolor"},
    "tr": {"bgcolor", "valign"},
    **mathematics.ATTRIBUTES,
}
# Only properties that style the flow in place: nothing that moves content out of the page, loads or animates.
PROPERTIES = _words(
    """color background background-color font font-size font-weight font-style font-variant font-family
    text-align text-decoration text-decoration-line text-decoration-color text-transform letter-spacing
    word-spacing line-height vertical-align list-style list-style-type display flex flex-direction
    flex-wrap flex-grow justify-content align-items gap row-gap column-gap grid-template-columns
    column-count width max-width height min-height box-sizing border-collapse border-spacing table-layout
    opacity margin padding border border-radius border-color border-style border-width
    margin-top margin-right margin-bottom margin-left padding-top padding-right padding-bottom padding-left
    border-top border-right border-bottom border-left"""
)
REVISION = 3
"""To be increased when the same memory gives other HTML, so that no older page comes from a cache."""
MAX_FONT_PX = 400
"""Largest font: above it a single glyph no longer fits on a page."""

_SAFE_VALUE = re.compile(r"""^[\w\s#%.,+*/()'"-]*$""")
_FUNCTION = re.compile(r"([\w-]*)\s*\(")
_FUNCTIONS = {"rgb", "rgba", "hsl", "hsla", "repeat", "minmax", "min", "max", "clamp", ""}
_NEGATIVE = re.compile(r"(?:^|[\s,(])-\s*[\d.]")
# A page is no window: these units would measure the whole sheet.
_WINDOW_UNIT = re.compile(r"\d(?:[sld]?v(?:w|h|i|b|min|max))\b")
# No style hides what a memory says.
_LEAST = {"display": re.compile(r"(?!none)"), "opacity": re.compile(r"^(?:1|0?\.[2-9]\d*|[2-9]\d%|100%)$")}
_LENGTH = re.compile(r"^[\d.]+(?:e[+-]?\d+)?(?:[a-z]+|%)$")
_FONT = re.compile(r"^([a-z0-9\s-]*?\b)?([\d.]+(?:px|pt|em|rem|%))(\s*/\s*[\d.]+[a-z%]*)?\s+(\D.*)$")
_FAMILIES = {
    "page-mono": ("mono", "courier", "consol", "menlo", "code"),
    "page-sans": ("sans",),
    "page-serif": ("serif", "times", "georgia", "garamond", "palatino", "cambria", "book"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff]")
_FENCED = re.compile(r"^\s*(`{3,}|~{3,})[ \t]*(?:markdown|md|html)[ \t]*\n(.*?)\n?\s*\1\s*$", re.S | re.I)
_IMAGE = re.compile(r'<img src="[^"]*" alt="([^"]*)"(?: title="[^"]*")? />')
_TAG = re.compile(r"<[^>]*>")


def to_html(text: str, mode: Mode) -> str:
    """Sanitised HTML fragment of a memory. Never raises for any `str`, lone surrogates included.

    A memory that is one ```markdown (or html) fence, as models like to write, counts as its content.
    """
    text = clean_text(text)
    if fenced := _FENCED.match(text):
        text = fenced.group(2)
    return _sanitiser().clean(text if mode == "html" else markdown_html(text))


def clean_text(text: str) -> str:
    """`text` as valid Unicode: lone surrogates, null and control characters become U+FFFD."""
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).replace("\r\n", "\n").replace("\r", "\n")


def shows_text(fragment: str) -> bool:
    """Whether a sanitised fragment has any character that draws something."""
    text = html.unescape(_TAG.sub(" ", fragment))
    return any(not (c.isspace() or invisible(c)) for c in text)


def invisible(character: str) -> bool:
    """Whether a character draws nothing by definition (format, control, separators, selectors)."""
    return unicodedata.category(character) in _INVISIBLE or character in _BLANK


_INVISIBLE = {"Cf", "Cc", "Zs", "Zl", "Zp"}
# Letters and symbols that are blank by design, and the variation selectors.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\u034f\u17b4\u17b5") | frozenset(
    map(chr, [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)])
)


def markdown_html(text: str) -> str:
    """HTML of Markdown (CommonMark, tables, strikethrough, mathematics), not sanitised."""
    # comrak (Rust): linear time on every input and 40 times as fast as the parsers written in Python.
    extensions, rendering = _comrak_options()
    parsed = comrak.render_markdown(
        literal.guard(text), extension_options=extensions, render_options=rendering
    )
    # An image cannot be fetched; its description is what the memory says.
    parsed = _IMAGE.sub(lambda image: f"[{image.group(1)}]" if image.group(1) else "", parsed)
    if "<" in text:
        parsed = literal.show_tags(parsed, ELEMENTS)
    parsed = literal.unguard(literal.show_destinations(parsed))
    return mathematics.draw(parsed, text) if "$" in text or "\\" in text or "```math" in text else parsed


def _comrak_options() -> tuple[comrak.ExtensionOptions, comrak.RenderOptions]:
    extensions, rendering = comrak.ExtensionOptions(), comrak.RenderOptions()
    extensions.table = extensions.strikethrough = extensions.cjk_friendly_emphasis = True
    extensions.math_dollars = extensions.math_latex = True
    rendering.unsafe_ = True  # raw HTML passes here and is sanitised afterwards
    rendering.full_info_string = True
    return extensions, rendering


@functools.cache
def _sanitiser():
    return nh3.Cleaner(
        tags=set(_CLEANED),
        clean_content_tags=set(DROPPED_WITH_TEXT),
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items()},
        attribute_filter=_filter_attribute,
        set_tag_attribute_values={"details": {"open": ""}},  # a page cannot be unfolded
        filter_style_properties=set(PROPERTIES),
        strip_comments=True,
        link_rel=None,
        url_schemes=set(),
    )


def _filter_attribute(element: str, name: str, value: str) -> str | None:
    if name in mathematics.LENGTHS and element in mathematics.ELEMENTS:
        return value if mathematics.LENGTH.match(value) else None
    if name != "style":
        return value if len(value) <= 100 and _SAFE_VALUE.match(value) else None
    return safe_style(value)


@functools.lru_cache(maxsize=4096)
def safe_style(style: str) -> str | None:
    """The declarations of an inline style whose values are harmless, or None when none is left.

    No functions but colours and grid sizes (so no `url()`), no escapes, no negative lengths, and a font
    size is capped. Property names are filtered by nh3 afterwards.
    """
    kept = []
    for declaration in style.split(";")[:64]:
        name, _, value = declaration.partition(":")
        name = name.strip().lower()
        value = value.replace("!important", "").strip().lower()
        functions = {match.group(1) for match in _FUNCTION.finditer(value)}
        if name not in PROPERTIES or len(value) > 200 or not _SAFE_VALUE.match(value):
            continue
        if name in _LEAST and not _LEAST[name].match(value):
            continue
        if not functions <= _FUNCTIONS or _NEGATIVE.search(value) or _WINDOW_UNIT.search(value):
            continue
        if name == "font-size" and _LENGTH.match(value):
            value = _capped(value)
        elif name == "font-family":
            value = _shipped_family(value)
        elif name == "font":
            shorthand = _FONT.match(value)
            if shorthand is None:
                continue
            before, size, line_height, family = shorthand.groups(default="")
            value = f"{before}{_capped(size)}{line_height} {_shipped_family(family)}"
        kept.append(f"{name}:{value}")
    return ";".join(kept) or None


def _capped(size: str) -> str:
    return f"min({size}, {MAX_FONT_PX}px)"


def _shipped_family(families: str) -> str:
    """The shipped family nearest to the ones asked for: system fonts differ between machines."""
    first = families.partition(",")[0]
    for family, names in _FAMILIES.items():
        if any(name in first for name in names):
            return f"{family}, page-any"
    return "page-sans, page-any"
