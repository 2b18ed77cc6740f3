"""Reader of MemAgent's training files (BytedTsinghua-SIA/hotpotqa on the Hugging Face hub, parquet).

Columns: `context` (the document, numbered passages), `prompt` (a list with one chat message that asks the
question), `reward_model` {ground_truth: list}, `extra_info` {index}.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from memocr_jax.core.errors import UserError
from memocr_jax.data.rows import (
    BadRow,
    Description,
    FilledText,
    Rows,
    SourceQuestion,
    Text,
    checked,
    existing_file,
    read_rows,
)

_BATCH_ROWS = 64  # rows of about 100 KB held at a time


def _number_or_text(value: Any) -> Any:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise PydanticCustomError("index", "neither a number nor a string")
    return value


class _Message(Description):
    content: FilledText


class _Reward(Description):
    ground_truth: Annotated[list[Text], BeforeValidator(lambda t: [t] if isinstance(t, str) else t)]


class _Extra(Description):
    index: Annotated[Any, AfterValidator(_number_or_text)]


class _Row(Description):
    prompt: list[_Message]
    context: FilledText
    reward_model: _Reward
    extra_info: _Extra


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
    parsed = checked(_Row, row)
    if len(parsed.prompt) != 1:
        raise BadRow("prompt", f"{len(parsed.prompt)} messages, not one")
    return SourceQuestion(
        example_id=f"memagent-{parsed.extra_info.index}",
        question=parsed.prompt[0].content,
        answers=tuple(dict.fromkeys(filter(None, parsed.reward_model.ground_truth))),
        context=parsed.context,
    )


def _rows(path: str, field: str) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    file = existing_file(path, field)
    columns = list(_Row.model_fields)
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
