"""Ask a long document: `python -m memocr_jax.ask --model DIR_OR_ID --document file.txt --question "..."`.

The document is read chunk by chunk into a memory, the memory is drawn as a page, and the model answers from
the page. `--save-memory FILE` keeps the memory. `--memory FILE` continues with it: without a document it asks
again, with `--document` it reads that too.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge, Interval

from memocr_jax.core.errors import UserError, nearest, run_command
from render.options import parse_options

if TYPE_CHECKING:
    from memocr_jax.agent.document import Progress
    from memocr_jax.agent.memory_agent import MemoryAgent

HTML = (".html", ".htm", ".xhtml")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that say which model is used."""

    model: str
    """A run directory, a Hugging Face one, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    step: int | None = None
    """Checkpoint of a run directory; default: the newest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """Read a document, answer questions about it, keep its memory and its page.

    Any field of the configuration can be set too: --agent.draft-max-new-tokens 512.
    """

    document: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """.txt, .md or .html file, - for standard input; may be given several times."""
    question: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """May be given several times: an answer on each line."""
    budget: Annotated[int | None, Ge(1)] = None
    """Visual tokens at most; default: the model's own."""
    page: str | None = None
    """File to write the page to as the model sees it (.png)."""
    memory: str | None = None
    """Go on with the memory in this file instead of reading anew."""
    save_memory: str | None = None
    """File to keep the memory in."""
    whole_reply: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print all that the model writes."""
    temperature: Annotated[float | None, Ge(0)] = None
    """0 is greedy; default: as the model is evaluated."""
    top_p: Annotated[float | None, Interval(gt=0, le=1)] = None
    """Default: as the model is evaluated."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read a document, answer questions about it, keep its memory and its page."""
    arguments, settings = _parse(sys.argv[1:] if argv is None else argv)
    texts = [read_document_file(name) for name in arguments.document]

    from memocr_jax.agent.document import Document
    from memocr_jax.agent.memory_agent import MemoryAgent

    if arguments.memory:
        Document.load(arguments.memory)  # what is wrong with it is said before the model is loaded
    with MemoryAgent(
        arguments.model,
        revision=arguments.revision,
        step=arguments.step,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        **settings,
    ) as agent:
        if arguments.memory:
            agent.load(arguments.memory)
        for name, text in zip(arguments.document, texts, strict=True):
            with _reading(name) as progress:
                if agent.document.chunks:
                    agent.append(text, progress)
                else:
                    agent.read(text, " ".join(arguments.question), progress)
        if arguments.save_memory:
            agent.save(arguments.save_memory)
        if arguments.page:
            _write_page(agent, arguments.page, arguments.budget)
        for question in arguments.question:
            answer = agent.ask(question, arguments.budget)
            print(answer.reply if arguments.whole_reply else answer.text, flush=True)
            print(f"[{answer.image_tokens} visual tokens, {answer.new_tokens} new]", file=sys.stderr)
    return 0


def read_document_file(name: str) -> str:
    """Text of a file, "-" for standard input; HTML (by its name or first tag) as the text that it shows.

    Raises UserError for what cannot be read, is no text or holds none.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"--document {name}: cannot be read ({error.strerror})") from None
    if data.startswith(b"%PDF"):
        raise UserError(f"--document {name}: a PDF; turn it into text first, for example with pdftotext")
    is_html = name.lower().endswith(HTML) or data.lstrip()[:14].lower().startswith(
        (b"<!doctype html", b"<html")
    )
    text = _html_text(data) if is_html else _plain_text(data, name)
    if not text.strip():
        raise UserError(f"--document {name}: there is no text in it")
    return text


def _plain_text(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--document {name}: not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None
    if "\0" in text:
        raise UserError(f"--document {name}: holds null bytes, so it is no text; give a text file")
    return text


def _html_text(data: bytes) -> str:
    import html_text
    import lxml.html

    # From bytes, so that the document's own declaration of its encoding counts; UTF-8 where it has none.
    try:
        data.decode("utf-8")
        parser = lxml.html.HTMLParser(encoding="utf-8")
    except UnicodeDecodeError:
        parser = lxml.html.HTMLParser()
    body = data.replace(b"\0", b"")
    tree = lxml.html.document_fromstring(body, parser=parser) if body.strip() else None
    return html_text.extract_text(tree) if tree is not None else ""


def parse_settings(words: Sequence[str], options: type) -> dict[str, dict[str, Any]]:
    """`--section.field VALUE` pairs as fields by section, values as YAML reads them.

    `options` is the dataclass of the command's own. Raises UserError for anything else.
    """
    import yaml

    settings: dict[str, dict[str, Any]] = {}
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for flag, value in zip(words[::2], [*words[1::2], None], strict=False):
        section, dot, field = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not dot:
            known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)]
            hint = f"{nearest(flag, known)}; settings are --section.field VALUE"
            raise UserError(f"unknown option {flag}{hint}")
        if value is None:
            raise UserError(f"{flag}: its value is missing")
        try:
            settings.setdefault(section, {})[field.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings.setdefault(section, {})[field.replace("-", "_")] = value
    return settings


def _parse(argv: Sequence[str]) -> tuple[Options, dict[str, dict[str, Any]]]:
    rest: list[str] = []
    arguments = parse_options(Options, argv, "python -m memocr_jax.ask", rest=rest)
    settings = parse_settings(rest, Options)
    if not arguments.document and not arguments.memory:
        raise UserError("nothing to read: give --document FILE, or --memory FILE of an earlier --save-memory")
    if not (arguments.question or arguments.save_memory or arguments.page):
        raise UserError("nothing to do: give --question, --page or --save-memory")
    for name in ("page", "save_memory"):
        path = getattr(arguments, name)
        if path and not Path(path).absolute().parent.is_dir():
            raise UserError(f"--{name.replace('_', '-')} {path}: its folder does not exist; make it first")
    return arguments, settings


@contextmanager
def _reading(name: str) -> Iterator[Progress]:
    """A bar of the chunks that are read, on stderr."""
    from memocr_jax.core.progress import ProgressBar

    what = "standard input" if name == "-" else Path(name).name
    with ProgressBar(f"reading {what}") as bar:
        yield bar.update


def _write_page(agent: MemoryAgent, path: str, budget: int | None) -> None:
    from PIL import Image

    try:
        Image.fromarray(agent.page_image(budget)).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--page {path}: cannot be written ({error}); name a .png file") from None


if __name__ == "__main__":
    run_command(main)
