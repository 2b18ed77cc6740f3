"""Examples for training and evaluation, made from any source."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from memocr_jax.config.data import DataConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.types import QaExample
from memocr_jax.data.contexts import ContextBuilder, cut_middle, split_chunks
from memocr_jax.data.flashrag import read_pool
from memocr_jax.data.memagent import read_memagent
from memocr_jax.data.prepared import PreparedQuestions
from memocr_jax.data.rows import Paragraph, SourceQuestion
from memocr_jax.data.sources import local_file, read_questions
from memocr_jax.data.synthetic import Split, SyntheticQuestion, SyntheticWorld
from memocr_jax.models.tokenizer import Tokenizer


class Examples(Sequence[QaExample]):
    """Questions that become examples when asked for; `examples[i]` is the same every time."""

    def __init__(
        self,
        questions: Sequence,
        make: Callable[..., QaExample],
        numbers: range | None = None,
        problems: Sequence[str] = (),
    ):
        """`make` takes a question; `numbers` says which of the questions are used (default: all)."""
        self._questions = questions
        self._make = make
        self._numbers = range(len(questions)) if numbers is None else numbers
        self.problems = tuple(problems)
        """Rows that were left out (lenient reading only): file, line, field."""

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> QaExample:
        return self._make(self._questions[self._numbers[index]])


def load_examples(config: DataConfig, tokenizer: Tokenizer, split: Split) -> Examples:
    """The examples of a split; documents are assembled and tokenised when asked for.

    Splits: "train", "validation", and for the synthetic world also "test". Raises `UserError` for settings
    that cannot work, missing files and (when `config.strict`) malformed rows.
    """
    config.check()
    if config.source == "synthetic":
        number = config.synthetic.questions if split == "train" else config.validation_questions
        number = min(number, config.limit) if split == "train" and config.limit else number
        world = SyntheticWorld(config.synthetic, config.seed, split, number)
        return Examples(world, functools.partial(_synthetic_example, config=config, tokenizer=tokenizer))
    questions, numbers, problems = _split_rows(config, split)
    if split == "train" and config.limit:
        numbers = numbers[: config.limit]
    builder = ContextBuilder(_pool(config, questions), tokenizer, config.seed)
    make = functools.partial(_source_example, config=config, tokenizer=tokenizer, builder=builder)
    return Examples(questions, make, numbers, problems)


def _synthetic_example(question: SyntheticQuestion, config: DataConfig, tokenizer: Tokenizer) -> QaExample:
    sections = [np.asarray(ids, np.int32) for ids in map(tokenizer.encode, question.sections)]
    if config.synthetic.chunks == 0:
        sections = list(_chunks(sections[0], config))
    longest = max(len(section) for section in sections)
    if longest > config.chunk_tokens:
        raise UserError(
            f"data.chunk_tokens: {config.chunk_tokens} is too small for a section of {longest} tokens; raise "
            "it, or raise data.synthetic.chunks"
        )
    return QaExample(
        example_id=question.example_id,
        question=question.question,
        chunks=tuple(sections),
        answers=(question.answer,),
        evidence=tuple(fact.sentence for fact in question.evidence),
    )


def _source_example(
    question: SourceQuestion, config: DataConfig, tokenizer: Tokenizer, builder: ContextBuilder
) -> QaExample:
    if question.context:
        tokens = np.asarray(tokenizer.encode(question.context), np.int32)
    else:
        tokens = builder.build(question, config.document_tokens, config.document_passages).tokens
    return QaExample(
        example_id=question.example_id,
        question=question.question,
        chunks=_chunks(tokens, config),
        answers=question.answers,
        evidence=question.evidence,
    )


def _chunks(tokens: np.ndarray, config: DataConfig) -> tuple[np.ndarray, ...]:
    return split_chunks(cut_middle(tokens, config.max_chunks * config.chunk_tokens), config.chunk_tokens)


def _split_rows(config: DataConfig, split: Split) -> tuple[Sequence[SourceQuestion], range, tuple[str, ...]]:
    """A file's questions, the numbers of those in the split, and the rows that were left out."""
    if split == "test":
        raise UserError(f"data.source: {config.source!r} has no test split; use train or validation")
    if config.validation_path:
        field = "path" if split == "train" else "validation_path"
        questions, problems = _read(config, field)
        number = len(questions) if split == "train" else min(len(questions), config.validation_questions)
        return questions, range(number), problems
    questions, problems = _read(config, "path")
    cut = len(questions) - config.validation_questions
    if cut < 1:
        raise UserError(
            f"data.validation_questions: {config.validation_questions} of {len(questions)} questions of "
            f"{config.path} leave none to train on; lower it or name a data.validation_path"
        )
    return questions, range(cut) if split == "train" else range(cut, len(questions)), problems


def _read(config: DataConfig, field: str) -> tuple[Sequence[SourceQuestion], tuple[str, ...]]:
    path, name = getattr(config, field), f"data.{field}"
    if not path:
        raise UserError(f"{name}: empty, but the training split was asked for; name a file")
    if config.source == "prepared":
        prepared = PreparedQuestions(path, name)
        return prepared, prepared.problems
    if config.source == "memagent":
        rows = read_memagent(local_file(path, name), config.strict, name)
    else:
        rows = read_questions(path, config.strict, name)
    return rows.questions, rows.problems


def _pool(config: DataConfig, questions: Sequence[SourceQuestion]) -> Sequence[Paragraph]:
    """Passages to pad with: those of a pool file, or of all questions of the file, in whichever split."""
    if config.source != "flashrag":
        return ()
    if config.pool_path:
        return read_pool(local_file(config.pool_path, "data.pool_path"), config.strict)
    return [paragraph for question in questions for paragraph in question.paragraphs]
