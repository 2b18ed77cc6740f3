"""Command line of the data: `python -m memocr_jax.data prepare --help`."""

from __future__ import annotations

import dataclasses
import re
import resource
import sys
import time

import tyro
from rich.console import Console

from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.progress import ProgressBar
from memocr_jax.data.catalog import CARDS
from memocr_jax.data.prepare import Job, prepare
from render.bounds import NonNegativeInt
from render.options import parse_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Assemble the long documents of a data set. A second call continues an interrupted one."""

    name: str
    """Data set of the catalogue (data/catalog.py), or a name of your own with --licence."""
    questions: str = ""
    """JSON lines in FlashRAG's layout: a file, or hf://datasets/OWNER/NAME/FILE."""
    pool: str = ""
    """JSON lines of further paragraphs (title, text) to pad with."""
    length: str = ""
    """Tokens of a document: 10k, 30k, 100k, 1m or a number."""
    passages: NonNegativeInt = 0
    """Passages of a document, instead of a length or on top of it."""
    tokenizer: str = ""
    """Tokenizer directory that lengths are counted with."""
    to: str
    """Folder to write."""
    split: str = "validation"
    """Name of the split."""
    limit: NonNegativeInt = 0
    """First N questions only; 0 for all."""
    seed: NonNegativeInt = 0
    """Seed of the choice and order of passages."""
    workers: int = 1
    """Processes."""
    licence: str = ""
    """Licence of data that are not in the catalogue."""
    strict: tyro.conf.FlagCreatePairsOff[bool] = False
    """Stop at the first bad row instead of leaving it out."""


def main() -> None:
    argv = sys.argv[1:]
    if argv[:1] not in (["prepare"], ["-h"], ["--help"]):
        raise UserError(f"python -m memocr_jax.data {' '.join(argv[:1])}: the one command is prepare")
    prog = "python -m memocr_jax.data prepare"
    arguments = parse_options(Prepare, ["--help"] if argv[0] != "prepare" else argv[1:], prog)
    job = Job(
        name=arguments.name,
        questions=arguments.questions or _hub_questions(arguments.name),
        tokenizer=arguments.tokenizer,
        pool=arguments.pool,
        document_tokens=parse_length(arguments.length) if arguments.length else 0,
        document_passages=arguments.passages,
        limit=arguments.limit,
        seed=arguments.seed,
        split=arguments.split,
        licence=arguments.licence,
        strict=arguments.strict,
        workers=arguments.workers,
        to=arguments.to,
    )
    _run(job)


def parse_length(text: str) -> int:
    """A number of tokens such as 30k, 1m or 4096 (`UserError` otherwise)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text.strip().lower())
    tokens = float(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2]] if match else 0
    if tokens < 1 or tokens != int(tokens):
        raise UserError(f"--length: {text!r} is not a number of tokens; write 10k, 30k, 100k, 1m or 4096")
    return int(tokens)


def _hub_questions(name: str) -> str:
    card = CARDS.get(name)
    if not card or not card.questions:
        raise UserError(f"--questions: needed for {name!r}, whose passages are not in FlashRAG's files")
    return card.questions


def _run(job: Job) -> None:
    # TFDS swaps Python's import function while it is being imported, which trips the bar's own thread: import
    # it before there is a bar.
    import tensorflow_datasets  # noqa: F401

    console = Console(highlight=False)
    start = time.perf_counter()
    with ProgressBar("documents", console=console) as bar:
        manifest = prepare(job, bar.update)
    for problem in manifest["problems"][:10]:
        console.print(f"left out: {problem}", markup=False, soft_wrap=True)
    if manifest["left_out"] > 10:
        console.print(f"... and {manifest['left_out'] - 10} more, all in the manifest")
    lengths = manifest["document_tokens"]
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # of the latter the largest
    peak = max(resource.getrusage(process).ru_maxrss for process in who) / 1024
    console.print(
        f"{manifest['questions']} questions, {manifest['left_out']} left out; licence {manifest['licence']}"
    )
    console.print(
        f"documents of {lengths['least']} to {lengths['most']} tokens, {lengths['mean']} on average"
    )
    console.print(
        f"{time.perf_counter() - start:.1f} s, {peak:.0f} MiB at most a process; in {job.to}", markup=False
    )


if __name__ == "__main__":
    run_command(main)
