"""Turns LaTeX in a memory into MathML, which Chromium draws. Text that does not parse stays as it is."""

from __future__ import annotations

import functools
import html
import re

from math_core import LatexError, LatexToMathML

_NAMES = """math mi mn mo mtext ms mspace mrow mfrac msqrt mroot mstyle merror mpadded mphantom menclose msub
msup msubsup munder mover munderover mmultiscripts mprescripts mtable mtr mtd"""
ELEMENTS = frozenset(_NAMES.split())
ATTRIBUTES = {
    "math": {"display"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "symmetric", "largeop", "movablelimits", "fence", "separator", "form"}
    | {"lspace", "rspace", "minsize", "maxsize"},
    "mspace": {"width", "height"},
    "mfrac": {"linethickness"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "menclose": {"notation"},
    "munder": {"accentunder"},
    "mover": {"accent"},
    "munderover": {"accent", "accentunder"},
    "mtable": {"displaystyle", "scriptlevel"},
    "mtd": {"columnspan", "rowspan"},
}
# Lengths that neither move a part out of its place nor make it huge.
LENGTH = re.compile(r"^\d{0,2}(?:\.\d+)?(?:em|ex|px|pt|mu)?$")
LENGTHS = frozenset(
    {"lspace", "rspace", "minsize", "maxsize", "width", "height", "linethickness", "scriptlevel"}
)

_MARKED = re.compile(
    r'<span data-math-style="(inline|display)">([^<]*)</span>'
    r'|<pre><code (?=[^<>]*class="language-math")[^<>]*data-math-style="(display)"[^<>]*>([^<]*)</code></pre>'
)
_DELIMITERS = {"inline": (("$", "$"), (r"\(", r"\)")), "display": (("$$", "$$"), (r"\[", r"\]"))}
# One group in braces, with groups within.
_GROUP = r"\{(?:[^{}<]|\{(?:[^{}<]|\{[^{}<]{0,200}\}){0,200}\}){0,400}\}"
_BARE = re.compile(rf"\\(?:[cdt]?frac|binom){_GROUP}{_GROUP}|\\sqrt(?:\[[^][<]{{1,20}}\])?{_GROUP}")
_CODE = re.compile(r"(<(?:pre|code|kbd|samp|tt)\b.*?</(?:pre|code|kbd|samp|tt)>|<[^>]*>)", re.S)
_COMMAND = re.compile(r"\\[a-zA-Z]+\*?(?:\s*\{[^{}]*\})?|\\.")
# Words of a sentence that two amounts of dollars may stand around.
_PROSE = re.compile(
    r"(?<![^\s(,;])(?:and|are|at|by|for|from|in|is|of|on|or|per|than|the|to|was|with)(?![^\s),;.])"
    r"|[^\W\d_]{3,}\s+[^\W\d_]{3,}"
)


def draw(fragment: str, source: str) -> str:
    """HTML of Markdown whose mathematics is marked by comrak, with MathML in its place.

    `source` is the Markdown itself. It gives the delimiters of mathematics that stays text.
    """
    fragment = _MARKED.sub(lambda found: _drawn(found, source), fragment)
    if "\\" not in fragment:
        return fragment
    parts = _CODE.split(fragment)
    parts[::2] = [_BARE.sub(_drawn_bare, text) for text in parts[::2]]
    return "".join(parts)


def _drawn(found: re.Match[str], source: str) -> str:
    style = found[1] or found[3]
    tex = html.unescape(found[2] if found[1] else found[4])
    if mathml := _mathml(tex, style == "display"):
        return mathml
    if found[3]:
        return found[0]
    left, right = next(
        (pair for pair in _DELIMITERS[style] if pair[0] + tex + pair[1] in source), _DELIMITERS[style][0]
    )
    return html.escape(left + tex + right, quote=False)


def _drawn_bare(found: re.Match[str]) -> str:
    return _mathml(html.unescape(found[0]), display=False) or found[0]


def is_mathematics(tex: str) -> bool:
    """Whether what stands between dollar signs is a formula: no number, and no words between two prices."""
    return bool(re.search(r"[^\W\d_]|[\\^=<>+]", tex)) and not _PROSE.search(_COMMAND.sub(" ", tex))


@functools.lru_cache(maxsize=4096)
def _mathml(tex: str, display: bool) -> str:
    """MathML of a formula; empty when it is none or does not parse."""
    if not is_mathematics(tex):
        return ""
    try:
        return _converter().convert_with_local_state(tex.strip(), displaystyle=display)
    except LatexError:
        return ""


@functools.cache
def _converter() -> LatexToMathML:
    return LatexToMathML(fancy_error=False, max_expansions=100)
