"""Reader of FlashRAG's JSON lines (RUC-NLPIR/FlashRAG_datasets): HotpotQA, 2WikiMultihopQA and alike.

A row: {id, question, golden_answers, metadata: {supporting_facts: {title, sent_id}, context: {title,
sentences (or content)}}}. Rows without a context (FlashRAG's NQ and TriviaQA) are refused.
"""

from __future__ import annotations

from memocr_jax.core.errors import UserError
from memocr_jax.data.rows import (
    BadRow,
    Paragraph,
    Rows,
    SourceQuestion,
    clean,
    dict_field,
    json_lines,
    list_field,
    read_rows,
    text_field,
)


def read_flashrag(path: str, strict: bool = True, field: str = "data.path") -> Rows:
    """All questions of a file. `UserError` names file, line and field; `field` is the setting of `path`."""
    return read_rows(path, json_lines(path, field), parse_row, strict)


def read_pool(path: str, strict: bool = True, field: str = "data.pool_path") -> tuple[Paragraph, ...]:
    """Paragraphs of a JSON-lines file with `title` and `text`; a bad line is an error, or left out."""
    paragraphs = []
    for line, row in json_lines(path, field):
        try:
            parsed = row()
            paragraphs.append(Paragraph(text_field(parsed, "title"), text_field(parsed, "text")))
        except BadRow as error:
            if strict:
                raise UserError(f"{path}:{line}: {error}") from None
    return tuple(paragraphs)


def parse_row(row: dict) -> SourceQuestion:
    """One row; raises `BadRow`."""
    answers = tuple(clean(answer) for answer in list_field(row, "golden_answers", str))
    metadata = dict_field(row, "metadata")
    if not metadata.get("context"):
        raise BadRow(
            "metadata.context",
            "missing or empty; the row comes without passages, so no document can be built",
        )
    context = dict_field(metadata, "context", "metadata.context")
    titles = list_field(context, "title", str, "metadata.context.title")
    key = "sentences" if "sentences" in context else "content"
    sentences = list_field(context, key, list, f"metadata.context.{key}")
    if len(titles) != len(sentences):
        raise BadRow(f"metadata.context.{key}", f"{len(sentences)} passages for {len(titles)} titles")
    facts = dict_field(metadata, "supporting_facts", "metadata.supporting_facts")
    fact_titles = list_field(facts, "title", str, "metadata.supporting_facts.title")
    fact_sentences = list_field(facts, "sent_id", int, "metadata.supporting_facts.sent_id")
    if len(fact_titles) != len(fact_sentences):
        raise BadRow(
            "metadata.supporting_facts.sent_id", f"{len(fact_sentences)} ids for {len(fact_titles)} titles"
        )
    if not fact_titles:
        raise BadRow("metadata.supporting_facts.title", "empty; a question needs a supporting document")
    for title in fact_titles:
        if title not in titles:
            raise BadRow("metadata.supporting_facts.title", f"{title!r} is not in metadata.context.title")
    return _question(
        row, answers, titles, sentences, list(zip(fact_titles, fact_sentences, strict=True)), key
    )


def _question(
    row: dict,
    answers: tuple[str, ...],
    titles: list[str],
    sentences: list[list[str]],
    facts: list[tuple[str, int]],
    key: str,
) -> SourceQuestion:
    paragraphs: list[Paragraph] = []
    gold: list[int] = []
    evidence: list[str] = []
    supporting = {title for title, _ in facts}
    for position, (title, parts) in enumerate(zip(titles, sentences, strict=True)):
        where = f"metadata.context.{key}[{position}]"
        cleaned = [clean(part) for part in list_field({"part": parts}, "part", str, where)]
        text = " ".join(part for part in cleaned if part)
        if title in supporting:
            if not text:
                raise BadRow(where, f"the supporting passage {title!r} is empty")
            gold.append(len(paragraphs))
            # Some rows number a sentence that is not there; the passage still is.
            numbers = dict.fromkeys(n for t, n in facts if t == title and 0 <= n < len(cleaned))
            evidence += [cleaned[n] for n in numbers if cleaned[n]]
        if text:
            paragraphs.append(Paragraph(clean(title), text))
    return SourceQuestion(
        example_id=text_field(row, "id"),
        question=text_field(row, "question"),
        answers=tuple(dict.fromkeys(answer for answer in answers if answer)),
        paragraphs=tuple(paragraphs),
        gold=tuple(gold),
        evidence=tuple(dict.fromkeys(evidence)),
    )
