"""Assembles long documents for real questions: gold passages among others, up to a length in tokens.

Other passages never carry a supporting title or contain an answer. Which passages, and in which order,
follows from the seed and the question's id alone, so the evidence of different questions lies at different
places.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from memocr_jax.core.errors import UserError
from memocr_jax.core.normalize import normalize
from memocr_jax.data.rows import Paragraph, SourceQuestion
from memocr_jax.models.tokenizer import Tokenizer

LENGTH_TOLERANCE = 0.03
"""A document may miss its target length by this share; a pool that cannot reach it is an error."""
_FILL_SHARE = 0.995  # good enough to stop looking for a passage that still fits
_MISSES = 64  # passages that did not fit, after which the document is long enough within the tolerance
_PASSAGE_TOKENS = 256  # a short document may miss its length by this much: passages are not cut
_CLOSED = frozenset({"yes", "no", "noanswer"})
_ARTICLES = frozenset({"a", "an", "the"})


@dataclasses.dataclass(frozen=True)
class LongDocument:
    """An assembled document."""

    text: str
    tokens: np.ndarray
    """i32[T], exactly the tokenizer's encoding of `text`."""
    gold_positions: tuple[int, ...]
    """0-based places of the gold passages among the `num_passages`."""
    num_passages: int


class ContextBuilder:
    """Assembles documents from a pool of passages; texts are normalised and tokenised once each.

    Threads may share one: its caches only gain entries, and these do not depend on the thread.
    """

    def __init__(self, pool: Iterable[Paragraph], tokenizer: Tokenizer, seed: int):
        """`pool`: passages to pad with; those of the questions themselves may be among them."""
        # Sorted, so that the order of the passages in the pool has no effect.
        ordered = sorted(pool, key=lambda passage: (_key(passage), passage.title, passage.text))
        self._pool = tuple({_key(passage): passage for passage in ordered}.values())
        self._tokenizer = tokenizer
        self._seed = seed
        self._normal: dict[Paragraph, str] = {}
        self._ids: dict[Paragraph, np.ndarray] = {}
        self._headers: dict[int, np.ndarray] = {}

    def build(
        self, question: SourceQuestion, target_tokens: int = 0, target_passages: int = 0
    ) -> LongDocument:
        """The document of a question: at most `target_tokens` tokens and `target_passages` passages.

        0 means no limit; without any limit a document has the question's own passages, all of them, shuffled.
        Gold passages are always in, even where they alone are longer. Raises `UserError` when the pool cannot
        bring the document within 3% (or 256 tokens) of the length, or to the number of passages, asked for.
        """
        rng = np.random.default_rng([self._seed, *_digest(question.example_id)])
        gold = [question.paragraphs[i] for i in question.gold]
        if not target_tokens and not target_passages:
            chosen = list(question.paragraphs)
            is_gold = [i in question.gold for i in range(len(chosen))]
        else:
            chosen = gold + self._fill(question, gold, target_tokens, target_passages, rng)
            is_gold = [i < len(gold) for i in range(len(chosen))]
        order = rng.permutation(len(chosen))
        passages = [chosen[i] for i in order]
        parts = [part for n, p in enumerate(passages) for part in (self._header(n), self._body_ids(p))]
        return LongDocument(
            text="".join(f"{_header(n)}{_body(p)}" for n, p in enumerate(passages)),
            tokens=np.concatenate(parts),
            gold_positions=tuple(n for n, i in enumerate(order) if is_gold[i]),
            num_passages=len(passages),
        )

    def _fill(
        self,
        question: SourceQuestion,
        gold: Sequence[Paragraph],
        tokens: int,
        passages: int,
        rng: np.random.Generator,
    ) -> list[Paragraph]:
        """Filler up to the first of the two limits that is reached."""
        target = tokens or float("inf")
        room = passages - len(gold) if passages else float("inf")
        length = sum(len(self._header(n)) + len(self._body_ids(p)) for n, p in enumerate(gold))
        filler: list[Paragraph] = []
        misses = 0
        least = min((1 - LENGTH_TOLERANCE) * target, target - _PASSAGE_TOKENS)
        for passage in self._candidates(question, gold, rng):
            full = length >= _FILL_SHARE * target or (length >= least and misses > _MISSES)
            if full or len(filler) >= room:
                return filler
            more = len(self._header(len(gold) + len(filler))) + len(self._body_ids(passage))
            if length + more <= target:
                filler.append(passage)
                length += more
            else:
                misses += 1
        if length < least and len(filler) < room:
            asked = f"document_tokens: {tokens}" if tokens else f"document_passages: {passages}"
            raise UserError(
                f"data.{asked} cannot be reached for question {question.example_id!r}: the pool allows "
                f"{length} tokens in {len(gold) + len(filler)} passages; name a larger pool or ask for less"
            )
        return filler

    def _candidates(
        self, question: SourceQuestion, gold: Sequence[Paragraph], rng: np.random.Generator
    ) -> Iterator[Paragraph]:
        """Allowed filler: the question's own other passages first, then the pool's, each in random order."""
        titles = {normalize(p.title) for p in gold}
        finder = AnswerFinder(question.answers)
        seen = {_key(p) for p in gold}
        own = [p for i, p in enumerate(question.paragraphs) if i not in question.gold]
        for source in (own, self._pool):
            for index in rng.permutation(len(source)):
                passage = source[index]
                if _key(passage) in seen or normalize(passage.title) in titles:
                    continue
                seen.add(_key(passage))
                if not finder.found_in(_raw(passage), self._normal_text(passage)):
                    yield passage

    def _normal_text(self, passage: Paragraph) -> str:
        if passage not in self._normal:
            self._normal[passage] = normalize(_raw(passage))
        return self._normal[passage]

    def _body_ids(self, passage: Paragraph) -> np.ndarray:
        if passage not in self._ids:
            self._ids[passage] = np.asarray(self._tokenizer.encode(_body(passage)), np.int32)
        return self._ids[passage]

    def _header(self, number: int) -> np.ndarray:
        if number not in self._headers:
            self._headers[number] = np.asarray(self._tokenizer.encode(_header(number)), np.int32)
        return self._headers[number]


class AnswerFinder:
    """Finds any of some answers in a text: as it is written (but for case), or in normal form.

    Any occurrence counts, also inside a word, but for yes, no and single letters and digits, which must be
    words of their own ("no" is in "know" and would leave hardly a passage). An article alone is no answer.
    """

    def __init__(self, answers: Iterable[str]):
        lowered = {answer.lower() for answer in answers if answer.strip()} - _ARTICLES
        words = {answer for answer in lowered if answer in _CLOSED or _is_letter(answer)}
        normal = {normalize(answer) for answer in lowered - words} - {""}
        letters = set(filter(_is_letter, normal))
        self._written, self._written_words = tuple(lowered - words), _any_word(words)
        self._normal, self._normal_words = tuple(normal - letters), _any_word(letters)

    def found_in(self, text: str, normal: str | None = None) -> bool:
        """`normal`: the normal form of the text, where it is known (`answers.normalize`)."""
        written = text.lower()
        normal = normalize(text) if normal is None else normal
        return (
            any(answer in written for answer in self._written)
            or any(answer in normal for answer in self._normal)
            or bool(self._written_words and self._written_words.search(written))
            or bool(self._normal_words and self._normal_words.search(normal))
        )


def _is_letter(answer: str) -> bool:
    """Whether it is one letter of an alphabet, or one digit (but not a Chinese character, say)."""
    return len(answer) == 1 and unicodedata.category(answer) in ("Ll", "Nd")


def _any_word(words: Iterable[str]) -> re.Pattern[str] | None:
    return re.compile(rf"\b(?:{'|'.join(sorted(words))})\b") if words else None


def cut_middle(tokens: np.ndarray, max_tokens: int) -> np.ndarray:
    """Keep the first and last halves of a document longer than `max_tokens` (0: no limit)."""
    if not 0 < max_tokens < len(tokens):
        return tokens
    head = (max_tokens + 1) // 2
    return np.concatenate([tokens[:head], tokens[len(tokens) - (max_tokens - head) :]])


def split_chunks(tokens: np.ndarray, chunk_tokens: int) -> tuple[np.ndarray, ...]:
    """Cut a document into chunks of `chunk_tokens`, the last one shorter."""
    return tuple(tokens[start : start + chunk_tokens] for start in range(0, len(tokens), chunk_tokens))


# A document is the concatenation of headers and bodies, each of which ends in a newline and is followed by
# a character that is not white space. No entry of a tokenizer with Qwen2.5's word pattern spans such a place,
# so the parts' ids in a row are the ids of the whole text.
def _header(number: int) -> str:
    return f"Document {number + 1}:\n"


def _body(passage: Paragraph) -> str:
    return f"{passage.title}\n{passage.text}\n\n"


def _raw(passage: Paragraph) -> str:
    return f"{passage.title} {passage.text}".lower()


def _key(passage: Paragraph) -> str:
    return " ".join(passage.text.split()).lower()


def _digest(example_id: str) -> list[int]:
    return list(np.frombuffer(hashlib.sha256(example_id.encode()).digest(), np.uint32))
