"""Command line of the data: `python -m memocr_jax.data prepare --help`."""

from __future__ import annotations

import argparse
import re
import resource
import time

from rich.console import Console

from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.progress import ProgressBar
from memocr_jax.data.catalog import CARDS
from memocr_jax.data.prepare import Job, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m memocr_jax.data")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "prepare",
        help="assemble long documents and keep them as a TFDS data set",
        description="Assemble the long documents of a data set. A second call continues an interrupted one.",
    )
    add = command.add_argument
    add("--name", required=True, help=f"data set: {', '.join(CARDS)}, or a name of your own with --licence")
    add(
        "--questions",
        default="",
        help="JSON lines in FlashRAG's layout: a file, or hf://datasets/OWNER/NAME/FILE",
    )
    add("--pool", default="", help="JSON lines of further paragraphs (title, text) to pad with")
    add("--length", default="", help="tokens of a document: 10k, 30k, 100k, 1m or a number")
    add("--passages", type=int, default=0, help="passages of a document, instead of a length or on top of it")
    add("--tokenizer", default="", help="tokenizer directory that lengths are counted with")
    add("--to", required=True, help="folder to write")
    add("--split", default="validation", help="name of the split")
    add("--limit", type=int, default=0, help="first N questions only")
    add("--seed", type=int, default=0, help="seed of the choice and order of passages")
    add("--workers", type=int, default=1, help="processes")
    add("--licence", default="", help="licence of data that are not in the catalogue")
    add("--strict", action="store_true", help="stop at the first bad row instead of leaving it out")
    arguments = parser.parse_args()
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
