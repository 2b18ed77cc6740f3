"""Questions as the published files give them, and the reporting of rows that are wrong."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from memocr_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A titled passage of a document collection."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class SourceQuestion:
    """A question of a published data set with the passages that come with it."""

    example_id: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers; a question may have none, and then it cannot be scored."""
    paragraphs: tuple[Paragraph, ...] = ()
    """Passages of the question's own, gold ones among them; empty when `context` is given."""
    gold: tuple[int, ...] = ()
    """Indices of the paragraphs that support the answer."""
    evidence: tuple[str, ...] = ()
    """Sentences of the gold paragraphs that carry the answer, where the data set names them."""
    context: str = ""
    """The whole document, where the data set comes with one."""


class BadRow(Exception):
    """A row that cannot be used: the field and what is wrong with it."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a file held."""

    questions: Sequence[SourceQuestion]
    problems: tuple[str, ...]
    """One line for each row that was left out: file, line, field, what is wrong."""


Row = TypeVar("Row")


def read_rows(
    path: str, lines: Iterator[tuple[int, Any]], parse: Callable[[Any], SourceQuestion], strict: bool
) -> Rows:
    """Parse numbered rows into questions with distinct ids.

    `strict` raises `UserError` at the first bad row; otherwise bad rows are listed in `problems`. A file
    without any good row is an error either way.
    """
    questions: dict[str, SourceQuestion] = {}
    first_line: dict[str, int] = {}
    problems: list[str] = []
    for line, row in lines:
        try:
            question = parse(row() if callable(row) else row)
            if question.example_id in questions:
                raise BadRow(
                    "id", f"{question.example_id!r} is also on line {first_line[question.example_id]}"
                )
        except BadRow as error:
            if strict:
                raise UserError(f"{path}:{line}: {error}") from None
            problems.append(f"{path}:{line}: {error}")
            continue
        questions[question.example_id] = question
        first_line[question.example_id] = line
    if not questions:
        raise UserError(f"{path}: no usable row" + (f" (first problem: {problems[0]})" if problems else ""))
    return Rows(tuple(questions.values()), tuple(problems))


def json_lines(path: str, field: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Line numbers (from 1) and, unparsed, the objects of a JSON-lines file; blank lines are passed over.

    `field` is the setting that names the file. Calling an item parses it; that raises `BadRow`.
    """
    with open(existing_file(path, field), "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, lambda line=line: _parse_line(line)


def existing_file(path: str, field: str) -> Path:
    """`path` as a file that exists, or `UserError` naming `field` and the nearest file there is."""
    file = Path(path)
    if file.is_file():
        return file
    what = "is a folder" if file.is_dir() else "does not exist"
    folder = file if file.is_dir() else file.parent
    names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    close = get_close_matches(file.name, names, n=1, cutoff=0.4) or names[:1]
    hint = f"did you mean {str(folder / close[0])!r}?" if close else "name a file that exists"
    raise UserError(f"{field}: {path!r} {what}; {hint}")


def text_field(row: dict, field: str) -> str:
    """A non-blank string of a row, NFC and stripped (`BadRow` otherwise)."""
    value = _present(row, field)
    if not isinstance(value, str):
        raise BadRow(field, f"{_kind(value)}, not a string")
    if not value.strip():
        raise BadRow(field, "blank")
    return clean(value)


def list_field(row: dict, field: str, of: type, name: str = "") -> list:
    """A list of a row whose items are all of type `of` (`BadRow` otherwise); `name` is the field in full."""
    name = name or field
    value = _present(row, field, name)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(name, f"{_kind(value)}, not a list")
    for position, item in enumerate(value):
        if not isinstance(item, of) or (of is int and isinstance(item, bool)):
            raise BadRow(f"{name}[{position}]", f"{_kind(item)}, not {_NAMES[of]}")
    return list(value)


def dict_field(row: dict, field: str, name: str = "") -> dict:
    """An object inside a row (`BadRow` otherwise)."""
    value = _present(row, field, name or field)
    if not isinstance(value, dict):
        raise BadRow(name or field, f"{_kind(value)}, not an object")
    return value


def clean(text: str) -> str:
    """NFC (as the tokenizer will see it), without white space around."""
    return unicodedata.normalize("NFC", text).strip()


_NAMES = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def _parse_line(line: bytes) -> Any:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow("line", f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRow("line", f"not JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRow("line", f"{_kind(row)}, not an object")
    return row


def _present(row: dict, field: str, name: str = "") -> Any:
    if field not in row or row[field] is None:
        raise BadRow(name or field, "missing")
    return row[field]


def _kind(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), f"a {type(value).__name__}")
