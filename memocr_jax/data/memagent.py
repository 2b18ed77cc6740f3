"""Reader of MemAgent's training files (BytedTsinghua-SIA/hotpotqa on the Hugging Face hub, parquet).

Columns: `context` (the document, numbered passages), `prompt` (a list with one chat message that asks the
question), `reward_model` {ground_truth: list}, `extra_info` {index}.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memocr_jax.core.errors import UserError
from memocr_jax.data.rows import (
    BadRow,
    Rows,
    SourceQuestion,
    clean,
    dict_field,
    existing_file,
    list_field,
    read_rows,
    text_field,
)

_BATCH_ROWS = 64  # rows of about 100 KB held at a time


class MemAgentQuestions(Sequence[SourceQuestion]):
    """The questions of a file. Documents are held compressed (a training file has a gigabyte of them) and are
    unpacked when a question is asked for."""

    def __init__(self, questions: Sequence[SourceQuestion], documents: Mapping[str, bytes]):
        """`questions` without their contexts, `documents` (zlib, UTF-8) by example id."""
        self._questions = questions
        self._documents = documents

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> SourceQuestion:
        question = self._questions[index]
        context = zlib.decompress(self._documents[question.example_id]).decode()
        return dataclasses.replace(question, context=context)


def read_memagent(path: str, strict: bool = True, field: str = "data.path") -> Rows:
    """All questions of a parquet file. `UserError` names file, row (from 1) and column."""
    documents: dict[str, bytes] = {}

    def parse(row: dict) -> SourceQuestion:
        question = parse_row(row)
        # The first of two rows with one id is the one that is kept.
        documents.setdefault(question.example_id, zlib.compress(question.context.encode(), level=1))
        return dataclasses.replace(question, context="")

    rows = read_rows(path, _rows(path, field), parse, strict)
    return Rows(MemAgentQuestions(rows.questions, documents), rows.problems)


def parse_row(row: dict) -> SourceQuestion:
    """One row; raises `BadRow`."""
    reward = dict_field(row, "reward_model")
    truth = reward.get("ground_truth")
    answers = (
        [truth]
        if isinstance(truth, str)
        else list_field(reward, "ground_truth", str, "reward_model.ground_truth")
    )
    answers = [clean(answer) for answer in answers if clean(answer)]
    messages = list_field(row, "prompt", dict)
    if len(messages) != 1:
        raise BadRow("prompt", f"{len(messages)} messages, not one")
    index = dict_field(row, "extra_info").get("index")
    if not isinstance(index, int | str) or isinstance(index, bool):
        raise BadRow("extra_info.index", "missing, or neither a number nor a string")
    return SourceQuestion(
        example_id=f"memagent-{index}",
        question=text_field(messages[0], "content"),
        answers=tuple(dict.fromkeys(answers)),
        context=text_field(row, "context"),
    )


def _rows(path: str, field: str) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    file = existing_file(path, field)
    columns = ["prompt", "context", "reward_model", "extra_info"]
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{field}: {path!r} is not a parquet file ({str(error).splitlines()[0]})") from None
    missing = [column for column in columns if column not in table.schema_arrow.names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; MemAgent's files have {', '.join(columns)}")
    number = 0
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield number, row
