"""Assemble the long documents of a data set once and keep them (`python -m memocr_jax.data prepare`).

The work is cut into shards. A shard is finished when its report is there; a second call with the same
settings makes the missing ones only. The bytes of the result do not depend on interruptions or on the number
of workers.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memocr_jax.core.errors import UserError, nearest
from memocr_jax.data.catalog import CARDS
from memocr_jax.data.contexts import ContextBuilder
from memocr_jax.data.flashrag import read_pool
from memocr_jax.data.prepared import MANIFEST, encode, shard_path, write_metadata, write_shard
from memocr_jax.data.rows import Rows, existing_file
from memocr_jax.data.sources import HUB, TFDS, local_file, read_questions
from memocr_jax.models.tokenizer import load_tokenizer
from render.files import PARTIAL, write_atomically

SHARD_QUESTIONS = 16
"""Questions of a shard, the most that an interruption can lose."""

RULES = 2
"""To be increased when the same job would give other documents than before."""

_JOB = "job.json"
_REPORTS = "reports"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is prepared. The result's bytes depend on all fields but the last three."""

    name: str
    """Data set: hotpotqa, 2wikimultihopqa, nq, triviaqa, or another one together with `licence`."""
    questions: str
    """JSON lines of questions in FlashRAG's layout."""
    tokenizer: str
    """Tokenizer directory that lengths are counted with; "" = the project's small one."""
    pool: str = ""
    """JSON lines of further paragraphs; "" = those of the other questions."""
    document_tokens: int = 0
    document_passages: int = 0
    limit: int = 0
    """First N questions only; 0 = all."""
    seed: int = 0
    split: str = "validation"
    """Name of the split, for TFDS."""
    licence: str = ""
    """Licence of a data set that is not in the catalogue."""
    strict: bool = False
    """Stop at the first row or question that cannot be used, instead of leaving it out."""
    workers: int = 1
    """Processes."""
    to: str = ""
    """Folder of the result."""


def prepare(job: Job, report: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Do the job, or the rest of it, and return the manifest. `report(done, total)` counts questions.

    Raises `UserError` for settings that cannot work, for a folder that holds another job's work and, when
    `job.strict`, for the first bad row or question.
    """
    _check(job)
    folder = Path(job.to)
    fingerprint = _fingerprint(job)
    _claim(folder, fingerprint)
    if (folder / MANIFEST).is_file():
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    rows = _rows(job)
    total = len(rows.questions)
    shards = -(-total // SHARD_QUESTIONS)
    done = [shard for shard in range(shards) if _report_path(folder, shard).is_file()]
    finished = sum(min(SHARD_QUESTIONS, total - shard * SHARD_QUESTIONS) for shard in done)
    report(finished, total)
    for shard in _make_shards(job, sorted(set(range(shards)) - set(done)), shards):
        finished += min(SHARD_QUESTIONS, total - shard * SHARD_QUESTIONS)
        report(finished, total)
    return _finish(job, fingerprint, rows, shards)


def _check(job: Job) -> None:
    if job.name not in CARDS and not job.licence:
        raise UserError(
            f"--name: {job.name!r} is not in the catalogue{nearest(job.name, list(CARDS))}; for data of your "
            "own add --licence"
        )
    for field in ("name", "split"):
        value = getattr(job, field)
        if not re.fullmatch(r"[a-z0-9_]+", value):
            raise UserError(f"--{field}: {value!r} must be made of small letters, digits and underscores")
    if not job.to:
        raise UserError("--to: empty; name the folder to write")
    for field in ("document_tokens", "document_passages", "limit", "seed"):
        if getattr(job, field) < 0:
            raise UserError(f"--{field.replace('_', '-')}: {getattr(job, field)} is negative; use 0 or more")
    if job.workers < 1:
        raise UserError(f"--workers: {job.workers} is too small; use 1 or more")


def _fingerprint(job: Job) -> dict[str, Any]:
    """All that the result depends on."""
    tokenizer = load_tokenizer(job.tokenizer)
    settings = dataclasses.asdict(job)
    for field in ("to", "workers", "strict", "questions", "pool", "tokenizer"):
        del settings[field]
    return {
        "rules": RULES,
        "settings": settings,
        "sources": {
            field: _identity(path, f"--{field}")
            for field, path in (("questions", job.questions), ("pool", job.pool))
            if path
        },
        "tokenizer_sha256": _sha256(Path(tokenizer.source)),
    }


def _identity(path: str, field: str) -> dict[str, str]:
    """What identifies a source: its contents, or its address where TFDS keeps it."""
    if path.startswith(TFDS):
        return {"address": path.split("?")[0]}
    file = existing_file(local_file(path, field), field)
    return {"file": path if path.startswith(HUB) else file.name, "sha256": _sha256(file)}


def _claim(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Make the folder this job's, or make sure that it is."""
    (folder / _REPORTS).mkdir(parents=True, exist_ok=True)
    path = folder / _JOB
    if not path.is_file():
        foreign = [p.name for p in folder.iterdir() if p.name != _REPORTS]
        if foreign:
            raise UserError(f"--to: {str(folder)!r} is not empty ({foreign[0]}); name a new folder")
        _write_json(path, fingerprint)
    elif json.loads(path.read_text(encoding="utf-8")) != fingerprint:
        raise UserError(
            f"--to: {str(folder)!r} holds data made with other settings, sources or rules (see its {_JOB}); "
            "name a new folder"
        )


def _rows(job: Job) -> Rows:
    rows = read_questions(job.questions, job.strict, "--questions")
    return Rows(rows.questions[: job.limit or None], rows.problems)


def _builder(job: Job) -> ContextBuilder:
    if job.pool:
        pool = read_pool(local_file(job.pool, "--pool"), job.strict, "--pool")
    else:
        questions = read_questions(job.questions, job.strict, "--questions").questions
        pool = tuple(paragraph for question in questions for paragraph in question.paragraphs)
    return ContextBuilder(pool, load_tokenizer(job.tokenizer), job.seed)


def _make_shards(job: Job, todo: list[int], shards: int) -> Iterator[int]:
    """Make the shards `todo`, in any order, giving the number of each as it is finished."""
    if job.workers == 1 or len(todo) < 2:
        for shard in todo:
            yield _make_shard(job, shard, shards)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(job.workers, len(todo)), mp_context=context) as pool:
        futures = [pool.submit(_make_shard, job, shard, shards) for shard in todo]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _inputs(job: Job) -> tuple[Rows, ContextBuilder]:
    return _rows(job), _builder(job)


def _make_shard(job: Job, shard: int, shards: int) -> int:
    rows, builder = _inputs(job)
    folder = Path(job.to)
    records: list[bytes] = []
    lengths: list[int] = []
    places: list[list[int]] = []
    problems: list[str] = []
    for question in rows.questions[shard * SHARD_QUESTIONS : (shard + 1) * SHARD_QUESTIONS]:
        try:
            document = builder.build(question, job.document_tokens, job.document_passages)
        except UserError as error:
            if job.strict:
                raise
            problems.append(str(error))
            continue
        records.append(encode(question, document))
        lengths.append(len(document.tokens))
        places += [[place, document.num_passages] for place in document.gold_positions]
    path = shard_path(folder, job.name, job.split, shard, shards)
    write_shard(path, records)
    _write_json(
        _report_path(folder, shard),
        {
            "file": path.name,
            "sha256": _sha256(path),
            "document_tokens": lengths,
            "bytes": sum(map(len, records)),
            "gold_places": places,
            "problems": problems,
        },
    )
    return shard


def _finish(job: Job, fingerprint: dict[str, Any], rows: Rows, shards: int) -> dict[str, Any]:
    folder = Path(job.to)
    reports = [json.loads(_report_path(folder, shard).read_text(encoding="utf-8")) for shard in range(shards)]
    lengths = [length for report in reports for length in report["document_tokens"]]
    problems = [*rows.problems, *(problem for report in reports for problem in report["problems"])]
    if not lengths:
        raise UserError(f"--questions: no document could be made (first problem: {problems[0]})")
    for leftover in folder.rglob(f"*{PARTIAL}"):  # torn files of killed processes
        leftover.unlink()
    card = CARDS.get(job.name)
    licence = job.licence or card.licence
    write_metadata(
        folder,
        job.name,
        job.split,
        [len(report["document_tokens"]) for report in reports],
        sum(report["bytes"] for report in reports),
        {
            "description": f"Questions over assembled documents of up to {max(lengths)} tokens.",
            "homepage": card.homepage if card else "",
            "citation": card.source if card else "",
            "license": licence,
        },
    )
    manifest = {
        "name": job.name,
        "licence": licence,
        **fingerprint,
        "questions": len(lengths),
        "left_out": len(problems),
        "problems": problems,
        "document_tokens": {
            "least": min(lengths),
            "mean": round(sum(lengths) / len(lengths), 1),
            "most": max(lengths),
        },
        "gold_places_by_tenth": _by_tenth(reports),
        "shards": {report["file"]: report["sha256"] for report in reports},
    }
    _write_json(folder / MANIFEST, manifest)
    return manifest


def _by_tenth(reports: list[dict[str, Any]]) -> list[int]:
    """How many gold passages lie in each tenth of their documents."""
    counts = [0] * 10
    for report in reports:
        for place, passages in report["gold_places"]:
            counts[10 * place // passages] += 1
    return counts


def _report_path(folder: Path, shard: int) -> Path:
    return folder / _REPORTS / f"{shard:05d}.json"


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
