"""Every prompt of the system, in one copy for training, evaluation and use.

A prompt is a tuple of pieces, independent of the tokenizer (`Tokenizer.encode_prompt` gives its ids). Its
first `prefix_pieces` pieces are what siblings share: for a draft everything before the memory (description,
question, article: arXiv 2601.21468), for a read everything up to the page.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.models.prompt import Image, Piece, Prompt, Special, Text, TokenIds, Tokens

MemoryFormat = Literal["markdown", "html"]


@dataclasses.dataclass(frozen=True)
class Templates:
    """The texts of all prompts, with {fields}. A user's own file may replace any of them."""

    system: str = "You are a careful reader. You answer from what you are shown."
    """System message of every conversation."""

    no_memory: str = "(nothing yet)"
    """Takes the place of the memory at the first chunk, and of a blank memory."""

    draft: str = """\
A long document is read section by section. After each section you rewrite a memory; it is all that is kept. \
In the end the memory is drawn as a page, and the question is answered from a picture of that page alone. \
The picture may be very small, and then only what is drawn large can still be read.

Question: {question}

Section of the document:
{article}

Memory so far:
{memory}

Write the memory anew{format}. Keep what helps to answer the question, add what this section says about it \
and leave out the rest. Give the largest type to the facts that matter most. Write nothing but the memory."""
    """One drafting turn: {question}, {article}, {memory}, {format}."""

    any_question: str = """\
Not known yet. Whatever may be asked about the document must be answered from the memory: who and what it is \
about, what happened, when, where, why and how much."""
    """Takes the place of {question} in drafts of a document that is read before anything was asked."""

    markdown: str = " in Markdown, with headings (# and ##), bold and plain text"
    """The text of {format} when memories are Markdown."""

    html: str = " in HTML, with inline styles for the size of the type"
    """The text of {format} when memories are HTML."""

    read: str = """\
{page}
The picture shows your notes on a document. Answer from them, as briefly as possible, and put the answer \
in \\boxed{{}}.

{question}"""
    """Reading turn over the page: {page}, {question}. Questions and clozes alike."""

    read_text: str = """\
Notes on a document:
{memory}

Answer from them, as briefly as possible, and put the answer in \\boxed{{}}.

{question}"""
    """Reading turn of the text-memory baseline: {memory}, {question}."""

    read_document: str = """\
Document:
{article}

Answer from the document, as briefly as possible, and put the answer in \\boxed{{}}.

{question}"""
    """The raw-history baseline: {article}, {question}."""

    gap_fill: str = """\
A passage of the page is printed below with {count} words replaced by {blank}. Find the passage on the page \
and give the missing words in order, separated by commas.

{passage}"""
    """The question of a cloze, which is the {question} of a reading turn: {passage}, {count}, {blank}."""


DEFAULT_TEMPLATES = Templates()

_FIELDS: dict[str, tuple[str, ...]] = {
    "system": (),
    "no_memory": (),
    "draft": ("question", "article", "memory"),
    "any_question": (),
    "markdown": (),
    "html": (),
    "read": ("page", "question"),
    "read_text": ("memory", "question"),
    "read_document": ("article", "question"),
    "gap_fill": ("passage",),
}
"""Fields that each template must have exactly once; those of `_OPTIONAL` may be there too."""

_OPTIONAL = {"draft": ("format",), "gap_fill": ("count", "blank")}
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


def load_templates(path: str = "") -> Templates:
    """The default templates, or those of a YAML file that names the ones it replaces.

    Raises `UserError` for a missing file, an unknown template, a missing, repeated or unknown field, and a
    page that comes after the question (siblings share the page, so it must come first).
    """
    if not path:
        return DEFAULT_TEMPLATES
    import yaml

    try:
        mapping = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"prompts.path: cannot read {path!r} ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"prompts.path: {path!r} is not a YAML file in UTF-8: {reason}") from None
    return templates_of(mapping, path, "prompts.path: ")


def templates_of(mapping: object, source: str, prefix: str = "") -> Templates:
    """The default templates with those of a mapping in their places, checked as `load_templates` says."""
    if not isinstance(mapping, dict):
        raise UserError(f"{prefix}{source!r} must map names of templates to texts")
    for name, text in mapping.items():
        if name not in _FIELDS:
            raise UserError(f"{source}: {name!r} is not a template{nearest(str(name), list(_FIELDS))}")
        if not isinstance(text, str):
            raise UserError(f"{source}: {name} is {type(text).__name__}, not a text; quote it")
        _check_template(f"{source}: {name}", name, text)
    return dataclasses.replace(DEFAULT_TEMPLATES, **mapping)


def draft_prompt(
    question: str,
    chunk_tokens: TokenIds,
    memory_text: str,
    memory_format: MemoryFormat = "markdown",
    templates: Templates = DEFAULT_TEMPLATES,
) -> Prompt:
    """The drafting turn for one chunk (ids `chunk_tokens`); a blank `memory_text` reads as "nothing yet"."""
    values = {
        "question": Text(question),
        "article": Tokens(chunk_tokens),
        "memory": _memory(memory_text, templates),
        "format": Text(templates.html if memory_format == "html" else templates.markdown),
    }
    return _prompt(templates.system, templates.draft, values, own="memory")


def read_prompt(question: str, templates: Templates = DEFAULT_TEMPLATES) -> Prompt:
    """The reading turn: the page (image 0) is in the prefix, the question or cloze in the suffix."""
    values = {"page": Image(0), "question": Text(question)}
    return _prompt(templates.system, templates.read, values, own="question")


def read_text_prompt(question: str, memory_text: str, templates: Templates = DEFAULT_TEMPLATES) -> Prompt:
    """Text-memory baseline: the memory is given as text. The prefix ends before the question."""
    values = {"memory": _memory(memory_text, templates), "question": Text(question)}
    return _prompt(templates.system, templates.read_text, values, own="question")


def read_document_prompt(
    question: str, document_tokens: TokenIds, templates: Templates = DEFAULT_TEMPLATES
) -> Prompt:
    """Raw-history baseline: the whole document (ids) in the context. The prefix ends before the question."""
    values = {"article": Tokens(document_tokens), "question": Text(question)}
    return _prompt(templates.system, templates.read_document, values, own="question")


def gap_fill_question(passage: str, count: int, blank: str, templates: Templates = DEFAULT_TEMPLATES) -> str:
    """The question about a passage in which `count` words are replaced by `blank`."""
    values = {"passage": passage, "count": str(count), "blank": blank}
    return "".join(text if name is None else values[name] for name, text in _parts(templates.gap_fill))


def chat_prompt(messages: Sequence[tuple[str, Sequence[str | None]]]) -> Prompt:
    """A conversation in Qwen's chat markup: (role, parts) in turn, a part being a text or None for an image.

    Images are numbered in order. All but the last piece is prefix, so the samples of one conversation share
    it. Roles are written as they are.
    """
    pieces: list[Piece] = []
    images = 0
    for role, parts in messages:
        pieces += [Special("im_start"), Text(f"{role}\n")]
        for part in parts:
            if part is None:
                pieces += [Special("vision_start"), Image(images), Special("vision_end")]
                images += 1
            else:
                pieces.append(Text(part))
        pieces += [Special("im_end"), Text("\n")]
    joined = _joined([*pieces, Special("im_start"), Text("assistant\n")])
    return Prompt(joined, len(joined) - 1)


def _memory(memory_text: str, templates: Templates) -> Text:
    return Text(memory_text if memory_text.strip() else templates.no_memory)


def _prompt(system: str, template: str, values: dict[str, Piece], own: str) -> Prompt:
    """Qwen's chat markup around a system and a user message; the prefix ends before the field `own`."""
    before, after = _expand(template, values, own)
    head = (
        Special("im_start"),
        Text(f"system\n{_literal(system)}"),
        Special("im_end"),
        Text("\n"),
        Special("im_start"),
    )
    tail = (Special("im_end"), Text("\n"), Special("im_start"), Text("assistant\n"))
    before = [*head, Text("user\n"), *before]
    if isinstance(before[-1], Text):
        # Cut before a space, which belongs to the word after it, so that the parts are tokenised as the
        # whole.
        text = before.pop().text
        kept = text.rstrip(" ")
        before, after = [*before, Text(kept)], [Text(text[len(kept) :]), *after]
    prefix = _joined(before)
    return Prompt(pieces=prefix + _joined((*after, *tail)), prefix_pieces=len(prefix))


def _expand(template: str, values: dict[str, Piece], own: str) -> tuple[list[Piece], list[Piece]]:
    before: list[Piece] = []
    after: list[Piece] = []
    pieces = before
    for name, text in _parts(template):
        if name is None:
            pieces.append(Text(text))
            continue
        if name == own:
            pieces = after
        value = values[name]
        if isinstance(value, Image):
            pieces += [Special("vision_start"), value, Special("vision_end")]
        else:
            pieces.append(value)
    return before, after


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Join neighbouring texts, so that they are tokenised as the chat template's plain string would be."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + piece.text)
        elif not (isinstance(piece, Text) and not piece.text):
            joined.append(piece)
    return tuple(joined)


def _parts(template: str) -> list[tuple[str | None, str]]:
    """A template cut into (None, literal text) and (field, '{field}'); `{{` and `}}` are braces."""
    parts: list[tuple[str | None, str]] = []
    for match in _PART.finditer(template):
        name = match.group(1)
        text = {"{{": "{", "}}": "}"}.get(match.group(), match.group())
        parts.append((name, text))
    return parts


def _literal(template: str) -> str:
    return "".join(text for _, text in _parts(template))


def _check_template(where: str, name: str, text: str) -> None:
    if any(part in ("{", "}") for part in (m.group() for m in _PART.finditer(text))):
        raise UserError(f"{where}: a single brace; write {{{{ or }}}} for a brace that is meant")
    fields = [field for field, _ in _parts(text) if field is not None]
    known = (*_FIELDS[name], *_OPTIONAL.get(name, ()))
    for field in fields:
        if field not in known:
            hint = nearest(field, known) if known else " (this template takes no fields)"
            raise UserError(f"{where}: unknown field {{{field}}}{hint}")
        if fields.count(field) > 1:
            raise UserError(f"{where}: field {{{field}}} occurs {fields.count(field)} times; use it once")
    for field in _FIELDS[name]:
        if field not in fields:
            raise UserError(f"{where}: field {{{field}}} is missing; the template needs it once")
    if name == "read" and fields.index("page") > fields.index("question"):
        raise UserError(f"{where}: {{page}} must come before {{question}}, for siblings share the page")
