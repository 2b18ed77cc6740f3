"""The cloze over the memory's own text (objective augQ, arXiv 2601.21468): details must stay legible.

A window of the memory's visible text is shown with some words blanked; the reader finds them on the page.
"""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np

from memocr_jax.agent.prompts import DEFAULT_TEMPLATES, Templates, gap_fill_question
from render.markdown import to_html
from render.types import Mode

_TAG = re.compile(r"<[^>]*>")
# A whole word: no part of "don't", "3.5" or "well-known", which can be written in several ways.
_WORD = re.compile(r"(?<![\w'’.-])[^\W_]{3,}(?![\w'’-])(?!\.\w)")
# The scorer drops articles, so a blanked one could not be checked.
_UNSCORED = frozenset({"the"})
BLANK = "____"


@dataclasses.dataclass(frozen=True)
class GapFill:
    """A cloze: the question for the reader, and the answer that its box must equal after normalisation."""

    question: str
    answer: str
    """All blanked words in order, separated by commas."""


def make_gap_fill(
    memory_text: str,
    rng: np.random.Generator,
    window_chars: int = 300,
    blanks: int = 3,
    memory_format: Mode = "markdown",
    templates: Templates = DEFAULT_TEMPLATES,
) -> GapFill | None:
    """Draw a cloze from a memory, asked for in the words of `templates`.

    A window of at most `window_chars` characters of visible text, cut at words, with `blanks` words longer
    than 2 characters blanked. The draw depends on nothing but `rng` and the text. Returns None when no window
    has as many usable words.
    """
    text = visible_text(memory_text, memory_format)
    words = [word.span() for word in _WORD.finditer(text) if word.group().lower() not in _UNSCORED]
    if blanks < 1 or len(words) < blanks:
        return None
    starts, ends = _windows(text, window_chars)
    begin, stop = np.asarray(words).T
    # The words begin[first:last] lie inside the window.
    first, last = np.searchsorted(begin, starts), np.searchsorted(stop, ends, side="right")
    usable = np.flatnonzero(last - first >= blanks)
    if not len(usable):
        return None
    window = rng.choice(usable)
    candidates = words[first[window] : last[window]]
    chosen = [candidates[i] for i in sorted(rng.choice(len(candidates), size=blanks, replace=False))]
    start, end = int(starts[window]), int(ends[window])
    parts, at = [], start
    for word_start, word_end in chosen:
        parts += [text[at:word_start], BLANK]
        at = word_end
    parts.append(text[at:end])
    question = gap_fill_question("".join(parts), blanks, BLANK, templates)
    return GapFill(question=question, answer=", ".join(text[i:j] for i, j in chosen))


def visible_text(memory_text: str, memory_format: Mode = "markdown") -> str:
    """The words of a memory as the renderer draws them: no markup, single spaces."""
    return " ".join(html.unescape(_TAG.sub(" ", to_html(memory_text, memory_format))).split())


def _windows(text: str, window_chars: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of all windows, at words (one space apart); the last ones reach the end of the text."""
    spaces = np.asarray([i for i, char in enumerate(text) if char == " "], dtype=np.int64)
    starts = np.concatenate([[0], spaces + 1])
    # A start later than len - window_chars would only shorten the window.
    starts = starts[(starts <= len(text) - window_chars) | (starts == 0)]
    ends = np.concatenate([spaces, [len(text)]])
    limits = np.searchsorted(ends, starts + window_chars, side="right") - 1
    return starts, ends[np.maximum(limits, 0)]
