"""Questions with whole articles from TFDS: TriviaQA (`trivia_qa/rc`) and NQ (`natural_questions/longt5`).

FlashRAG's files of these two carry no passages. TFDS prepares the releases (on a machine with TensorFlow and,
for NQ, Apache Beam: `tfds build natural_questions/longt5 --file_format=array_record`); reading them here
needs neither. Articles are cut into passages; the first one of an article that holds an answer is its gold
passage (distant supervision, as in TriviaQA, arXiv 1705.03551).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.data.contexts import AnswerFinder
from memocr_jax.data.rows import BadRow, Paragraph, Rows, SourceQuestion, clean, read_rows

PREFIX = "tfds://"
PASSAGE_WORDS = 100
"""Words of a passage at most, but for longer sentences (passages of 100 words: DPR, arXiv 2004.04906)."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_]|[\"“'(])|\n+")


def read_tfds(spec: str, strict: bool = True, field: str = "data.path") -> Rows:
    """Read `tfds://DATASET/CONFIG:SPLIT?data_dir=FOLDER` (data_dir defaults to TFDS's own).

    `UserError` names the record (from 1) and the field.
    """
    import tensorflow_datasets as tfds

    match = re.fullmatch(r"tfds://(\w+/\w+):(\w+)(?:\?data_dir=(.+))?", spec)
    if not match:
        raise UserError(f"{field}: {spec!r} is not tfds://DATASET/CONFIG:SPLIT?data_dir=FOLDER")
    dataset, split, data_dir = match.groups()
    if dataset not in _PARSERS:
        raise UserError(f"{field}: cannot read {dataset!r} from TFDS{nearest(dataset, list(_PARSERS))}")
    builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
    if split not in builder.info.splits:
        raise UserError(
            f"{field}: TFDS has not prepared {dataset}:{split} in {str(builder.data_dir)!r}; run tfds build "
            f"{dataset} --file_format=array_record, or name the data_dir that has it"
        )
    records = builder.as_data_source(split=split)
    return read_rows(spec, _numbered(records), _PARSERS[dataset], strict)


def cut_passages(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Cut running text at sentence ends into passages of at most `words` words; no sentence is cut."""
    passages: list[str] = []
    room = 0
    for sentence in filter(None, map(str.strip, _SENTENCE_END.split(text))):
        length = len(sentence.split())
        if passages and length <= room:
            passages[-1] += " " + sentence
            room -= length
        else:
            passages.append(sentence)
            room = words - length
    return passages


def parse_trivia_qa(record: dict[str, Any]) -> SourceQuestion:
    """A record of `trivia_qa/rc` (Wikipedia pages first, then search results); raises `BadRow`."""
    answer = record["answer"]
    pages, results = record["entity_pages"], record["search_results"]
    articles = [*zip(pages["title"], pages["wiki_context"], strict=True)]
    articles += zip(results["title"], results["search_context"], strict=True)
    return _from_articles(
        record["question_id"], record["question"], [answer["value"], *answer["aliases"]], articles
    )


def parse_natural_questions(record: dict[str, Any]) -> SourceQuestion:
    """A record of `natural_questions/longt5`; raises `BadRow`."""
    answers = [record["answer"], *record["all_answers"]]
    return _from_articles(record["id"], record["question"], answers, [(record["title"], record["context"])])


_PARSERS: dict[str, Callable[[dict[str, Any]], SourceQuestion]] = {
    "trivia_qa/rc": parse_trivia_qa,
    "natural_questions/longt5": parse_natural_questions,
}


def _numbered(records: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for number in range(len(records)):
        yield number + 1, records[number]


def _from_articles(
    example_id: bytes, question: bytes, answers: Sequence[bytes], articles: Sequence[tuple[bytes, bytes]]
) -> SourceQuestion:
    texts = tuple(dict.fromkeys(filter(None, (clean(answer.decode()) for answer in answers))))
    if not texts:
        raise BadRow("answer", "no answer that is not blank")
    if not clean(question.decode()):
        raise BadRow("question", "blank")
    finder = AnswerFinder(texts)
    paragraphs: list[Paragraph] = []
    gold: list[int] = []
    evidence: list[str] = []
    for title, article in articles:
        found = False
        for passage in cut_passages(clean(article.decode())):
            if not found and finder.found_in(passage):
                found = True
                gold.append(len(paragraphs))
                sentences = _SENTENCE_END.split(passage)
                evidence += [s for s in sentences if finder.found_in(s)][:1]
            paragraphs.append(Paragraph(clean(title.decode()) or "Untitled", passage))
    if not gold:
        raise BadRow("context", "no passage of its articles contains an answer")
    return SourceQuestion(
        example_id=example_id.decode(),
        question=clean(question.decode()),
        answers=texts,
        paragraphs=tuple(paragraphs),
        gold=tuple(gold),
        evidence=tuple(dict.fromkeys(evidence)),
    )
