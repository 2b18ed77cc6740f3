"""Reader of FlashRAG's JSON lines (RUC-NLPIR/FlashRAG_datasets): HotpotQA, 2WikiMultihopQA and alike.

A row: {id, question, golden_answers, metadata: {supporting_facts: {title, sent_id}, context: {title,
sentences (or content)}}}. Rows without a context (FlashRAG's NQ and TriviaQA) are refused.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, BeforeValidator, Field

from memocr_jax.data.contexts import AnswerFinder
from memocr_jax.data.rows import (
    BadRow,
    Description,
    FilledText,
    Paragraph,
    Rows,
    SourceQuestion,
    Text,
    checked,
    checked_json,
    good_rows,
    json_lines,
    read_rows,
)


class _Context(Description):
    title: list[Text]
    # 2WikiMultihopQA's files have the other name.
    sentences: Annotated[list[list[Text]], Field(validation_alias=AliasChoices("sentences", "content"))]


class _Facts(Description):
    title: list[Text]
    sent_id: list[int]


class _Metadata(Description):
    context: Annotated[_Context | None, BeforeValidator(lambda context: context or None)] = None
    supporting_facts: _Facts


class _Row(Description):
    golden_answers: list[Text]
    metadata: _Metadata
    id: FilledText
    question: FilledText


class _Passage(Description):
    title: FilledText
    text: FilledText


def read_flashrag(path: str, strict: bool = True, field: str = "data.path") -> Rows:
    """All questions of a file. `UserError` names file, line and field; `field` is the setting of `path`."""
    return read_rows(path, json_lines(path, field), parse_line, strict)


def read_pool(path: str, strict: bool = True, field: str = "data.pool_path") -> tuple[Paragraph, ...]:
    """Paragraphs of a JSON-lines file with `title` and `text`; a bad line is an error, or left out."""

    def parse(line: bytes) -> Paragraph:
        passage = checked_json(_Passage, line)
        return Paragraph(passage.title, passage.text)

    return tuple(paragraph for _, paragraph in good_rows(path, json_lines(path, field), parse, strict, []))


def parse_line(line: bytes) -> SourceQuestion:
    """One line; raises `BadRow`."""
    return _question(checked_json(_Row, line))


def parse_row(row: dict) -> SourceQuestion:
    """One row; raises `BadRow`."""
    return _question(checked(_Row, row))


def _question(row: _Row) -> SourceQuestion:
    context, facts = row.metadata.context, row.metadata.supporting_facts
    if context is None:
        raise BadRow(
            "metadata.context",
            "missing or empty; the row comes without passages, so no document can be built",
        )
    if len(context.title) != len(context.sentences):
        raise BadRow(
            "metadata.context.sentences",
            f"{len(context.sentences)} passages for {len(context.title)} titles",
        )
    if len(facts.title) != len(facts.sent_id):
        raise BadRow(
            "metadata.supporting_facts.sent_id", f"{len(facts.sent_id)} ids for {len(facts.title)} titles"
        )
    if not facts.title:
        raise BadRow("metadata.supporting_facts.title", "empty; a question needs a supporting document")
    answers = tuple(dict.fromkeys(filter(None, row.golden_answers)))
    supported = _supported(context, facts, answers)
    paragraphs: list[Paragraph] = []
    gold: list[int] = []
    evidence: list[str] = []
    for place, (title, sentences) in enumerate(zip(context.title, context.sentences, strict=True)):
        if place in supported:
            gold.append(len(paragraphs))
            evidence += [sentences[n] for n in supported[place] if sentences[n]]
        if any(sentences):
            paragraphs.append(Paragraph(title, " ".join(filter(None, sentences))))
    return SourceQuestion(
        example_id=row.id,
        question=row.question,
        answers=answers,
        paragraphs=tuple(paragraphs),
        gold=tuple(gold),
        evidence=tuple(dict.fromkeys(evidence)),
    )


def _supported(context: _Context, facts: _Facts, answers: tuple[str, ...]) -> dict[int, list[int]]:
    """The places of the gold passages, each with the numbers of its sentences that carry the answer.

    A fact names a passage by its title. Where several have that title, those count that have the sentence,
    and of these, if any, those with an answer.
    """
    finder = AnswerFinder(answers)
    supported: dict[int, list[int]] = {}
    for title, number in zip(facts.title, facts.sent_id, strict=True):
        if title not in context.title:
            raise BadRow("metadata.supporting_facts.title", f"{title!r} is not in metadata.context.title")
        named = [place for place, other in enumerate(context.title) if other == title]
        places = [place for place in named if any(context.sentences[place])]
        if not places:
            raise BadRow(
                f"metadata.context.sentences[{named[0]}]", f"the supporting passage {title!r} is empty"
            )
        # Some rows number a sentence that is not there; the passage still is.
        having = [place for place in places if 0 <= number < len(context.sentences[place])]
        if len(places) > 1:
            places = having or places
            places = [p for p in places if finder.found_in(" ".join(context.sentences[p]))] or places
        for place in places:
            numbers = supported.setdefault(place, [])
            if place in having and number not in numbers:
                numbers.append(number)
    return supported
