"""The cloze over the memory's own text (objective augQ, arXiv 2601.21468): details must stay legible.

A window of the memory's visible text is shown with some words blanked; the reader finds them on the page.
"""

from __future__ import annotations

import bisect
import dataclasses
import html
import re

import numpy as np

from render.markdown import to_html
from render.types import Mode

_TAG = re.compile(r"<[^>]*>")
# A whole word: not a part of "don't", "3.5" or "well-known", which has no single way of being written.
_WORD = re.compile(r"(?<![\w'’.-])[^\W_]{3,}(?![\w'’-])(?!\.\w)")
# The scorer drops articles, so a blanked one could not be checked.
_UNSCORED = frozenset({"the"})
BLANK = "____"


@dataclasses.dataclass(frozen=True)
class GapFill:
    """A cloze: what the reader is asked, and what its boxed answer must equal after normalisation."""

    question: str
    answer: str
    """All blanked words in order, separated by commas."""


def make_gap_fill(
    memory_text: str,
    rng: np.random.Generator,
    window_chars: int = 300,
    blanks: int = 3,
    memory_format: Mode = "markdown",
) -> GapFill | None:
    """Draw a cloze from a memory.

    A window of at most `window_chars` characters of visible text, cut at words, with `blanks` words longer
    than 2 characters blanked. The draw depends on nothing but `rng` and the text. Returns None when no window
    has as many usable words.
    """
    text = visible_text(memory_text, memory_format)
    words = [word.span() for word in _WORD.finditer(text) if word.group().lower() not in _UNSCORED]
    windows = [window for window in _windows(text, window_chars) if len(_inside(words, *window)) >= blanks]
    if not windows or blanks < 1:
        return None
    start, end = windows[rng.integers(len(windows))]
    candidates = _inside(words, start, end)
    chosen = [candidates[i] for i in sorted(rng.choice(len(candidates), size=blanks, replace=False))]
    parts, at = [], start
    for first, last in chosen:
        parts += [text[at:first], BLANK]
        at = last
    parts.append(text[at:end])
    question = (
        f"A passage of the page is printed below with {blanks} words replaced by {BLANK}. Find the passage "
        "on the page and give the missing words in order, separated by commas.\n\n" + "".join(parts)
    )
    return GapFill(question=question, answer=", ".join(text[first:last] for first, last in chosen))


def visible_text(memory_text: str, memory_format: Mode = "markdown") -> str:
    """The words of a memory as the renderer draws them: no markup, single spaces."""
    return " ".join(html.unescape(_TAG.sub(" ", to_html(memory_text, memory_format))).split())


def _windows(text: str, window_chars: int) -> list[tuple[int, int]]:
    """All windows (start, end) that begin and end at words; the last ones reach the end of the text."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    last = max(0, len(text) - window_chars)  # a later start would only shorten the window
    return [(start, _end(text, start + window_chars)) for start in starts if start <= last or start == 0]


def _end(text: str, limit: int) -> int:
    if limit >= len(text) or text[limit] == " ":
        return min(limit, len(text))
    return max(text.rfind(" ", 0, limit), 0)


def _inside(words: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The words that lie in text[start:end], of `words` in order."""
    first = bisect.bisect_left(words, start, key=lambda word: word[0])
    last = bisect.bisect_right(words, end, key=lambda word: word[1])
    return words[first:last]
