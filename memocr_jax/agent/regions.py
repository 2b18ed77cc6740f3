"""Regions of a memory by how large they are drawn, and the share of their words that is gold evidence."""

from __future__ import annotations

import dataclasses
import html.parser
from collections.abc import Iterable

from memocr_jax.core.normalize import normalize
from render.markdown import to_html
from render.types import Mode


@dataclasses.dataclass(frozen=True)
class Regions:
    """The words of a memory (normal form: lower case, no punctuation, no articles), in order."""

    crucial: tuple[str, ...]
    """Words of level-1 headings, which are drawn largest."""
    between: tuple[str, ...]
    """Words of the other headings."""
    detailed: tuple[str, ...]
    """Words of all other text."""


@dataclasses.dataclass(frozen=True)
class Content:
    """How a region's words relate to the gold evidence."""

    words: int
    density: float | None
    """Share of the region's words that occur in the evidence; None for an empty region."""
    coverage: float
    """Share of the evidence's different words that occur in the region."""


def split_regions(memory: str, mode: Mode = "markdown") -> Regions:
    """The words of a memory by region. Never raises for any text."""
    parser = _Parser()
    parser.feed(to_html(memory, mode))
    parser.close()
    return Regions(*(tuple(normalize("".join(parts)).split()) for parts in parser.found))


def content(words: Iterable[str], evidence: Iterable[str]) -> Content:
    """Density and coverage of a region. Raises ValueError when the evidence (sentences) has no word."""
    words = list(words)
    gold = {word for sentence in evidence for word in normalize(sentence).split()}
    if not gold:
        raise ValueError("the evidence has no word")
    return Content(
        words=len(words),
        density=sum(word in gold for word in words) / len(words) if words else None,
        coverage=len(gold & set(words)) / len(gold),
    )


def in_heading(memory: str, evidence: Iterable[str], mode: Mode = "markdown") -> bool | None:
    """Whether every word of the gold evidence (sentences) stands in level-1 headings; None without a word."""
    evidence = list(evidence)
    if not any(normalize(sentence) for sentence in evidence):
        return None
    return content(split_regions(memory, mode).crucial, evidence).coverage == 1


_WITHIN_WORDS = frozenset(
    (
        *(
            "a",
            "abbr",
            "b",
            "big",
            "cite",
            "code",
            "del",
            "dfn",
            "em",
            "font",
            "i",
            "ins",
            "kbd",
            "mark",
            "q",
        ),
        *("s", "samp", "small", "span", "strike", "strong", "sub", "sup", "tt", "u", "var", "wbr"),
    )
)


class _Parser(html.parser.HTMLParser):
    """Text by the heading it stands in; `found` holds the pieces of (h1, h2..h6, elsewhere)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: tuple[list[str], list[str], list[str]] = ([], [], [])
        self._level = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._separate(tag)
        if _is_heading(tag):
            self._level = int(tag[1])

    def handle_endtag(self, tag: str) -> None:
        self._separate(tag)
        if _is_heading(tag):
            self._level = 0

    def handle_data(self, data: str) -> None:
        self.found[0 if self._level == 1 else 1 if self._level else 2].append(data)

    def _separate(self, tag: str) -> None:
        """Separate words of two blocks; bold letters within a word do not cut it."""
        if tag not in _WITHIN_WORDS:
            for pieces in self.found:
                pieces.append(" ")


def _is_heading(tag: str) -> bool:
    return len(tag) == 2 and tag[0] == "h" and tag[1] in "123456"
