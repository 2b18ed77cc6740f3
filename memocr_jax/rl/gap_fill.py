"""The cloze over the memory's own text (objective augQ, arXiv 2601.21468): details must stay legible.

A window of the memory's visible text is shown with some words blanked; the reader finds them on the page.
"""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np

from render.markdown import DROPPED_WITH_TEXT

# What the page does not show, taken away in this order: elements that are dropped with their text, comments
# (an unclosed one swallows the rest), tags; fence markers with their language; link definitions and targets.
_DROPPED = re.compile(
    rf"<({'|'.join(sorted(DROPPED_WITH_TEXT))})\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE
)
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|</?[a-zA-Z][^<>]*>", re.DOTALL)
_FENCE = re.compile(r"^\s*(?:```|~~~).*$", re.MULTILINE)
_LINK_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]:.*$", re.MULTILINE)
_LINK_TARGET = re.compile(r"\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_LINE_MARKUP = re.compile(r"^\s*(?:#{1,6}\s+|>\s?|[-*+]\s+|\|?[\s:|-]+\|?$)", re.MULTILINE)
_INLINE_MARKUP = re.compile(r"[*`|\[\]]|~~|\b_+|_+\b|^#+$", re.MULTILINE)
# A whole word: not a part of "don't", "3.5" or "well-known", which has no single way of being written.
_WORD = re.compile(r"(?<![\w'’.-])[^\W_]{3,}(?![\w'’-])(?!\.\w)")
# The scorer drops articles, so a blanked one could not be checked.
_UNSCORED = frozenset({"the"})
_INVISIBLE = (
    (_DROPPED, " "),
    (_TAG, " "),
    (_FENCE, ""),
    (_LINK_DEFINITION, ""),
    (_LINK_TARGET, "]"),
    (_LINE_MARKUP, ""),
    (_INLINE_MARKUP, " "),
)
BLANK = "____"


@dataclasses.dataclass(frozen=True)
class GapFill:
    """A cloze: what the reader is asked, and what its boxed answer must equal after normalisation."""

    question: str
    answer: str
    """All blanked words in order, separated by commas."""


def make_gap_fill(
    memory_text: str, rng: np.random.Generator, window_chars: int = 300, blanks: int = 3
) -> GapFill | None:
    """Draw a cloze from a memory (Markdown or HTML).

    A window of at most `window_chars` characters of visible text, cut at words, with `blanks` words longer
    than 2 characters blanked. The draw depends on nothing but `rng` and the text. Returns None when no window
    has as many usable words.
    """
    text = visible_text(memory_text)
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    # A start later than this one only shortens the window.
    last = max(0, len(text) - window_chars)
    windows = [_window(text, start, window_chars) for start in starts if start <= last or start == 0]
    windows = [window for window in windows if len(_words(window)) >= blanks]
    if not windows or blanks < 1:
        return None
    window = windows[rng.integers(len(windows))]
    words = _words(window)
    chosen = [words[i] for i in sorted(rng.choice(len(words), size=blanks, replace=False))]
    parts, end = [], 0
    for word in chosen:
        parts += [window[end : word.start()], BLANK]
        end = word.end()
    parts.append(window[end:])
    question = (
        f"A passage of the page is printed below with {blanks} words replaced by {BLANK}. Find the passage "
        "on the page and give the missing words in order, separated by commas.\n\n" + "".join(parts)
    )
    return GapFill(question=question, answer=", ".join(word.group() for word in chosen))


def visible_text(memory_text: str) -> str:
    """The words of a memory as the page shows them: markup, tags and link targets gone, single spaces."""
    text = memory_text
    for pattern, shown in _INVISIBLE:
        text = pattern.sub(shown, text)
    return " ".join(html.unescape(text).split())


def _window(text: str, start: int, window_chars: int) -> str:
    end = start + window_chars
    if end < len(text) and not text[end].isspace():
        end = max(text.rfind(" ", start, end), start)
    return text[start:end].strip()


def _words(window: str) -> list[re.Match[str]]:
    return [word for word in _WORD.finditer(window) if word.group().lower() not in _UNSCORED]
