"""Questions as the published files give them, and the check of rows against descriptions.

A reader describes its rows as a pydantic model (`Description`); `checked` compares a row with it. An error in
a row is reported with file, line and field.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

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
    """The questions of a file."""

    questions: Sequence[SourceQuestion]
    problems: tuple[str, ...]
    """One line for each row that was left out: file, line, field, what is wrong."""


class Description(BaseModel):
    """Describes what a row, or an object inside a row, must hold. Further fields are passed over."""

    model_config = ConfigDict(strict=True, frozen=True)


def clean(text: str) -> str:
    """The text in NFC (as the tokenizer will see it), without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def _unicode(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("unicode", "half of a UTF-16 surrogate pair, which is no character")
    return clean(text)


def _not_blank(text: str) -> str:
    if not text:
        raise PydanticCustomError("blank", "blank")
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""A string, cleaned."""
FilledText = Annotated[Text, AfterValidator(_not_blank)]
"""A string that is not blank, cleaned."""

Described = TypeVar("Described", bound=Description)
Row = TypeVar("Row")
Parsed = TypeVar("Parsed")


def checked(description: type[Described], row: Any) -> Described:
    """A row (dicts, lists and values) as an object of its description; raises `BadRow`."""
    try:
        return description.model_validate(row)
    except ValidationError as errors:
        error = errors.errors()[0]
    place, found, kind = error["loc"], error["input"], error["type"]
    if kind == "missing" or (found is None and place and isinstance(place[-1], str)):
        problem = "missing"
    elif kind in _EXPECTED:
        problem = f"{_kind(found)}, not {_EXPECTED[kind]}"
    else:
        problem = error["msg"]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    raise BadRow(field.removeprefix(".") or "line", problem)


def checked_json(description: type[Described], line: bytes) -> Described:
    """A line of JSON as an object of its description; raises `BadRow`."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow("line", f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRow("line", f"not JSON ({error})") from None
    return checked(description, row)


def json_lines(path: str, field: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers (from 1) and without a byte-order mark.

    `field` is the setting that names the file.
    """
    with open(existing_file(path, field), "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, line


def good_rows(
    path: str,
    rows: Iterable[tuple[int, Row]],
    parse: Callable[[Row], Parsed],
    strict: bool,
    problems: list[str],
) -> Iterator[tuple[int, Parsed]]:
    """What `parse` makes of numbered rows.

    A row for which it raises `BadRow` is a `UserError` (`strict`), or is left out and listed in `problems`.
    """
    for line, row in rows:
        try:
            parsed = parse(row)
        except BadRow as error:
            _leave_out(path, line, error, strict, problems)
            continue
        yield line, parsed


def read_rows(
    path: str, rows: Iterable[tuple[int, Row]], parse: Callable[[Row], SourceQuestion], strict: bool
) -> Rows:
    """The questions of numbered rows, which must have distinct ids; see `good_rows`.

    A file without any good row is an error either way.
    """
    questions: dict[str, SourceQuestion] = {}
    first_line: dict[str, int] = {}
    problems: list[str] = []
    for line, question in good_rows(path, rows, parse, strict, problems):
        name = question.example_id
        if name in questions:
            again = BadRow("id", f"{name!r} is also on line {first_line[name]}")
            _leave_out(path, line, again, strict, problems)
        else:
            questions[name], first_line[name] = question, line
    if not questions:
        raise UserError(f"{path}: no usable row" + (f" (first problem: {problems[0]})" if problems else ""))
    return Rows(tuple(questions.values()), tuple(problems))


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


def _leave_out(path: str, line: int, error: BadRow, strict: bool, problems: list[str]) -> None:
    problem = f"{path}:{line}: {error}"
    if strict:
        raise UserError(problem)
    problems.append(problem)


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "an object",
    "dict_type": "an object",
}
_KINDS = {str: "a string", int: "an integer", float: "a number", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
