"""Answers questions by every method of an evaluation, from one draft.

Methods (arXiv 2601.21468, section 5): the memory's page; a page of the same memory in one font size; the
memory as text, cut to the budget; the document itself. What is sampled depends on the seed, the question's
id, the sample and what is read, never on the step, the other budgets or the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import nh3
import numpy as np
from flax import nnx

from memocr_jax.agent.agent import Agent, Memory, ReadRequest
from memocr_jax.agent.answers import boxed_answer, exact_match, f1, sub_em
from memocr_jax.agent.prompts import Prompt, read_document_prompt, read_text_prompt
from memocr_jax.config import EvalConfig, Method, SamplingConfig
from memocr_jax.core.buckets import batches
from memocr_jax.core.rng import row_key
from memocr_jax.core.types import QaExample, TurnKind
from memocr_jax.engine import PromptGroup
from memocr_jax.models.tokenizer import Tokenizer
from render.markdown import to_html
from render.types import MemoryPage, Mode, PageStatus
from render.views import fit, image_tokens

LABEL = "evaluate"
"""Names the random streams of an evaluation."""
KEYS = (
    *("dataset", "length", "method", "budget", "sample", "id", "answers", "prediction"),
    *("em", "f1", "sub_em", "status", "image_tokens", "page_hash"),
)
"""Fields of a result, in the order in which results.jsonl has them."""
DOCUMENT_TOKENS = 131_072
"""Raw history gives the engine several documents at once up to so many tokens."""
QUESTION_TOKENS = 512
"""Positions that raw history leaves free for the question: more than any question of the data sets needs."""


@dataclasses.dataclass(frozen=True)
class MethodAnswer:
    """The answer to one question by one method at one budget."""

    sample: int
    method: Method | str
    budget: int | None
    """Visual tokens, or tokens of a text memory; None for raw history."""
    status: str
    """The page's status; of a text OK, TRUNCATED (memory or document cut) or EMPTY."""
    text: str | None = None
    """The model's whole answer; None where nothing could be read, which counts as wrong."""
    image_tokens: int | None = None
    page_hash: str | None = None
    shown_tokens: int | None = None
    """Tokens of the text or document that was read; None for a page."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question with all its answers, its memories and its pages."""

    example: QaExample
    answers: tuple[MethodAnswer, ...]
    """By sample, then method, then budget, in the order of the settings."""
    memories: tuple[str, ...]
    """The memory of each sample; empty when no method needs one."""
    pages: dict[str, MemoryPage]
    """The pages by content hash, also those that could not be drawn."""

    def results(self, dataset: str, length: str) -> list[dict[str, Any]]:
        """One object for each answer, with the fields `KEYS`. Unread and unscored answers are wrong."""
        return [_result(self.example, answer, dataset, length) for answer in self.answers]

    def entry(self, dataset: str, length: str) -> dict[str, Any]:
        """The journal's line: the results, and what the report shows beside them."""
        return {
            "results": self.results(dataset, length),
            "question": self.example.question,
            "document_tokens": self.example.document_tokens,
            "evidence": list(self.example.evidence),
            "memories": list(self.memories),
            "texts": [answer.text for answer in self.answers],
            "shown_tokens": [answer.shown_tokens for answer in self.answers],
            "pages": {
                content_hash: {"status": str(page.status), "detail": page.detail}
                for content_hash, page in self.pages.items()
            },
        }


def evaluate_examples(
    agent: Agent,
    params: nnx.State,
    examples: Sequence[QaExample],
    settings: EvalConfig,
    dataset: str = "",
    length: str = "",
) -> list[dict[str, Any]]:
    """Results (fields `KEYS`) for every question, sample, method and budget of `settings`.

    `dataset` and `length` are names that go into the results. Nothing is written.
    """
    return [
        result
        for wave in waves(len(examples), settings, agent.engine.config.groups)
        for answered in answer_questions(agent, params, [examples[i] for i in wave], settings)
        for result in answered.results(dataset, length)
    ]


def waves(questions: int, settings: EvalConfig, groups: int) -> list[range]:
    """Groups of questions that are answered together. They are the same wherever an evaluation was
    interrupted, because batches of other lengths may round differently."""
    return batches(questions, settings.wave_questions or groups)


def answer_questions(
    agent: Agent, params: nnx.State, examples: Sequence[QaExample], settings: EvalConfig
) -> list[Answered]:
    """Draft once, then answer by every method at every budget; in the order of `examples`."""
    sampling = SamplingConfig(temperature=settings.temperature, top_p=settings.top_p)
    memories: list[Memory] = []
    if set(settings.methods) != {"raw history"}:
        memories = agent.draft_memories(params, examples, settings.samples, sampling, LABEL)
    pages: list[dict[str, MemoryPage]] = [{} for _ in examples]
    seen: list[_Read] = []
    told: list[_Read] = []
    for method in settings.methods:
        if method == "visual memory":
            drawn = agent.render_memories(memories)
        elif method == "visual without layout":
            drawn = _render_flat(agent, memories)
        else:
            drawn = []
        for memory in drawn:
            pages[memory.q][memory.page.content_hash] = memory.page
            seen += _page_reads(memory, examples[memory.q], method, settings.budgets)
        if method == "text memory":
            for memory in memories:
                told += _text_reads(agent, memory, examples[memory.q], settings.budgets)
        if method == "raw history":
            longest = settings.raw_max_tokens or longest_document(agent)
            for q, example in enumerate(examples):
                told += _document_reads(agent, q, example, settings.samples, longest)
    texts = {
        **_read_pages(agent, params, examples, seen, sampling),
        **_read_texts(agent, params, examples, told, sampling),
    }
    answers = {
        (r.q, r.blank.sample, r.blank.method, r.blank.budget): dataclasses.replace(
            r.blank, text=texts.get(r.same)
        )
        for r in (*seen, *told)
    }
    order = [
        (sample, method, budget)
        for sample in range(settings.samples)
        for method in settings.methods
        for budget in ((None,) if method == "raw history" else settings.budgets)
    ]
    return [
        Answered(
            example,
            tuple(answers[q, *place] for place in order),
            tuple(memory.text for memory in memories if memory.q == q),
            pages[q],
        )
        for q, example in enumerate(examples)
    ]


def answer_pages(
    agent: Agent,
    params: nnx.State,
    examples: Sequence[QaExample],
    memories: Sequence[str],
    settings: EvalConfig,
    method: str,
) -> list[Answered]:
    """Draw given memories, one for each example, and read their pages at every budget.

    `method` names them in the results; nothing is drafted, and there is one sample.
    """
    sampling = SamplingConfig(temperature=settings.temperature, top_p=settings.top_p)
    drawn = agent.render_memories([Memory(q, 0, text, ()) for q, text in enumerate(memories)])
    reads = [_page_reads(m, examples[m.q], method, settings.budgets) for m in drawn]
    texts = _read_pages(agent, params, examples, [read for some in reads for read in some], sampling)
    return [
        Answered(
            examples[memory.q],
            tuple(dataclasses.replace(read.blank, text=texts.get(read.same)) for read in some),
            (memory.text,),
            {memory.page.content_hash: memory.page},
        )
        for memory, some in zip(drawn, reads, strict=True)
    ]


_Same = tuple[int, int, str]


@dataclasses.dataclass(frozen=True)
class _Read:
    """A wanted answer, and the page or prompt that it is read from (none when there is nothing to read)."""

    q: int
    blank: MethodAnswer
    """The answer without its text."""
    stream: str = ""
    """Names the random stream, by what is read and not by the budget."""
    request: ReadRequest | None = None
    prompt: Prompt | None = None

    @property
    def same(self) -> _Same:
        """Key of what is read: budgets that show the same view share one answer."""
        return self.q, self.blank.sample, self.stream


def _page_reads(memory: Memory, example: QaExample, method: str, budgets: Sequence[int]) -> list[_Read]:
    page = memory.page
    blank = functools.partial(
        MethodAnswer, memory.g, method, status=str(page.status), page_hash=page.content_hash
    )
    if not memory.readable:
        return [_Read(memory.q, blank(budget)) for budget in budgets]
    asked = ((TurnKind.QA, example.question, example.answers),)
    reads = []
    for budget in budgets:
        view = fit(page.pixels, budget)
        stream = f"{method} {view.shape[0]}x{view.shape[1]}"
        answer = blank(budget, image_tokens=image_tokens(view))
        reads.append(_Read(memory.q, answer, stream, ReadRequest(memory, view, asked, stream)))
    return reads


def _read_pages(
    agent: Agent,
    params: nnx.State,
    examples: Sequence[QaExample],
    reads: Sequence[_Read],
    sampling: SamplingConfig,
) -> dict[_Same, str]:
    """The answer to each different view."""
    requests = {read.same: read.request for read in reads if read.request is not None}
    if not requests:
        return {}
    readings = agent.read_pages(params, examples, list(requests.values()), sampling, LABEL)
    return {same: reading.text for same, reading in zip(requests, readings, strict=True)}


def _render_flat(agent: Agent, memories: Sequence[Memory]) -> list[Memory]:
    agent.progress("render without layout", 0, len(memories))
    with agent.stopwatch("render"):
        texts = [flat_html(memory.text, agent.config.memory_format) for memory in memories]
        futures = [agent.renderer.submit(text, mode="html") for text in texts]
        pages = [future.result() for future in futures]
    return [dataclasses.replace(memory, page=page) for memory, page in zip(memories, pages, strict=True)]


_BLOCK = re.compile(r"<(/?)(?:h[1-6]|pre|dt|dd|caption|summary|figcaption)(?:\s[^>]*)?>")
_HEAD_CELL = re.compile(r"<(/?)th(?:\s[^>]*)?>")
_KEPT = {"p", "br", "ul", "ol", "li", "table", "thead", "tbody", "tfoot", "tr", "td", "div", "section"}


def flat_html(memory: str, mode: Mode = "markdown") -> str:
    """The memory as HTML without its layout: every word in one size and face; blocks, lists, tables stay.

    This baseline shows the effect of layout: words, reader and budgets are the same.
    """
    blocks = _HEAD_CELL.sub(r"<\1td>", _BLOCK.sub(r"<\1p>", to_html(memory, mode)))
    return nh3.clean(blocks, tags=_KEPT, attributes={})


def _text_reads(agent: Agent, memory: Memory, example: QaExample, budgets: Sequence[int]) -> list[_Read]:
    tokens = len(agent.tokenizer.encode(memory.text))
    reads = []
    for budget in budgets:
        text = first_tokens(agent.tokenizer, memory.text, budget)
        shown = len(agent.tokenizer.encode(text))
        status = PageStatus.TRUNCATED if tokens > budget else PageStatus.OK
        if not text.strip():
            status = PageStatus.EMPTY
        answer = MethodAnswer(memory.g, "text memory", budget, str(status), shown_tokens=shown)
        if status == PageStatus.EMPTY:
            reads.append(_Read(memory.q, answer))
        else:
            prompt = read_text_prompt(example.question, text, agent.templates)
            reads.append(_Read(memory.q, answer, f"text memory {shown}", prompt=prompt))
    return reads


def first_tokens(tokenizer: Tokenizer, text: str, budget: int) -> str:
    """The longest beginning of `text` that has at most `budget` tokens and ends with a whole character."""
    ids = tokenizer.encode(text)
    if len(ids) <= budget:
        return text
    for kept in range(budget, 0, -1):
        start = tokenizer.decode(ids[:kept]).rstrip("\N{REPLACEMENT CHARACTER}")
        # A shorter text may be tokenised differently from the same part of the whole.
        if len(tokenizer.encode(start)) <= budget:
            return start
    return ""


def longest_document(agent: Agent) -> int:
    """Tokens of a document that the model's positions leave room for, beside prompt and answer."""
    positions = agent.engine.model_config.text.max_position_embeddings
    prefix, suffix = agent.tokenizer.encode_prompt(read_document_prompt("", (), agent.templates))
    rest = len(prefix) + len(suffix) + QUESTION_TOKENS + agent.config.read_max_new_tokens
    return max(1, positions - rest)


def _document_reads(agent: Agent, q: int, example: QaExample, samples: int, longest: int) -> list[_Read]:
    tokens = np.concatenate(example.chunks) if example.chunks else np.zeros(0, np.int32)
    status = PageStatus.OK if len(tokens) else PageStatus.EMPTY
    if len(tokens) > longest:
        # The middle is cut out, as in training.
        tokens = np.concatenate([tokens[: (longest + 1) // 2], tokens[len(tokens) - longest // 2 :]])
        status = PageStatus.TRUNCATED
    prompt = None
    if len(tokens):
        prompt = read_document_prompt(example.question, tokens, agent.templates)
    answer = functools.partial(MethodAnswer, method="raw history", budget=None, status=str(status))
    return [
        _Read(q, answer(sample=g, shown_tokens=len(tokens)), "raw history" if prompt else "", prompt=prompt)
        for g in range(samples)
    ]


def _read_texts(
    agent: Agent,
    params: nnx.State,
    examples: Sequence[QaExample],
    reads: Sequence[_Read],
    sampling: SamplingConfig,
) -> dict[_Same, str]:
    """The answer to each different text. All samples share a document, so they are its siblings."""
    different = {read.same: read for read in reads if read.prompt is not None}
    groups: dict[tuple, list[_Read]] = {}
    for read in different.values():
        shared = read.blank.method == "raw history"
        groups.setdefault((read.q, read.stream, None if shared else read.blank.sample), []).append(read)
    answers: dict[_Same, str] = {}
    for batch in _engine_calls(list(groups.values()), agent.engine.config.groups):
        with agent.stopwatch("read"):
            completions = agent.engine.generate(
                params,
                [_prompt_group(agent, examples[group[0].q].example_id, group) for group in batch],
                agent.config.read_max_new_tokens,
                sampling,
                functools.partial(agent.progress, f"read {batch[0][0].blank.method}"),
            )
        for group, siblings in zip(batch, completions, strict=True):
            for read, completion in zip(group, siblings, strict=True):
                answers[read.same] = agent.tokenizer.decode(completion.tokens)
    return answers


def _engine_calls(groups: list[list[_Read]], most: int) -> Iterator[list[list[_Read]]]:
    """Texts for the engine at once: all short ones, but only as many documents as fit together."""

    def is_document(group: list[_Read]) -> bool:
        return group[0].blank.method == "raw history"

    if texts := [group for group in groups if not is_document(group)]:
        yield texts
    documents = sorted(filter(is_document, groups), key=lambda group: group[0].blank.shown_tokens)
    while documents:
        together = max(1, min(most, DOCUMENT_TOKENS // documents[-1][0].blank.shown_tokens))
        yield documents[-together:]
        del documents[-together:]


def _prompt_group(agent: Agent, example_id: str, group: Sequence[_Read]) -> PromptGroup:
    encoded = [agent.tokenizer.encode_prompt(read.prompt) for read in group]
    return PromptGroup(
        np.array(encoded[0][0], np.int32),
        tuple(np.array(suffix, np.int32) for _, suffix in encoded),
        tuple(row_key(agent.seed, "read", LABEL, example_id, r.blank.sample, r.stream) for r in group),
    )


def _result(example: QaExample, answer: MethodAnswer, dataset: str, length: str) -> dict[str, Any]:
    prediction = None if answer.text is None else boxed_answer(answer.text)
    return {
        "dataset": dataset,
        "length": length,
        "method": answer.method,
        "budget": answer.budget,
        "sample": answer.sample,
        "id": example.example_id,
        "answers": list(example.answers),
        "prediction": prediction,
        "em": exact_match(prediction, example.answers),
        "f1": f1(prediction, example.answers),
        "sub_em": sub_em(prediction, example.answers),
        "status": answer.status if example.answers else "NO_ANSWER",
        "image_tokens": answer.image_tokens,
        "page_hash": answer.page_hash,
    }
