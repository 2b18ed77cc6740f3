"""The finished questions of an evaluation on disk: it can be killed at any time, and continues there.

`<directory>/journal/` holds `fingerprint.json`, which says what is evaluated, and one file a process with a
line for each finished question: its place, its results, and what the report shows of it. Everything else in
the directory (results.jsonl, summary, tables, report) is made from these lines, so only the lines must be
whole; one that was cut short is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memocr_jax.core.errors import UserError
from render.files import replacing, write_atomically
from render.types import MemoryPage

FOLDER = "journal"
FINGERPRINT = "fingerprint.json"
PAGES = "pages"

Place = tuple[int, int]
"""(set, question), counted from 0."""


class Journal:
    """Finished questions of one evaluation, over all processes and interruptions."""

    def __init__(self, directory: Path, process: int = 0):
        """`process` is this process's number: it alone appends to its own file."""
        self.directory = Path(directory)
        self._own = self.directory / FOLDER / f"part-{process:05d}.jsonl"

    def check(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise UserError when another evaluation's questions are here, naming the first difference."""
        path = self.directory / FOLDER / FINGERPRINT
        if path.is_file():
            require_same(json.loads(path.read_text(encoding="utf-8")), fingerprint, self.directory)

    def open(self, fingerprint: Mapping[str, Any]) -> None:
        """Start or continue the evaluation that `fingerprint` (flat, of JSON values) describes.

        Raises UserError as `check` does.
        """
        self.check(fingerprint)
        folder = self.directory / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--to {self.directory}: cannot be made ({error.strerror})") from None
        path = folder / FINGERPRINT
        if not path.is_file():
            write_atomically(path, json.dumps(fingerprint, indent=1, ensure_ascii=False) + "\n")
        if self._own.is_file():
            with self._own.open("r+b") as file:
                file.truncate(_whole(file.read()))

    def finished(self) -> dict[Place, dict[str, Any]]:
        """Every finished question's line by its place, in order, whichever process wrote it."""
        found = {}
        for path in sorted((self.directory / FOLDER).glob("part-*.jsonl")):
            data = path.read_bytes()
            for line in data[: _whole(data)].splitlines():
                entry = json.loads(line)
                found[tuple(entry["place"])] = entry
        return dict(sorted(found.items()))

    def append(self, place: Place, entry: Mapping[str, Any]) -> None:
        """Note a finished question; when this returns it survives the process and, with the file system's
        help, the machine."""
        with self._own.open("ab") as file:
            file.write(json.dumps({"place": place, **entry}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def require_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], directory: Path) -> None:
    """Raise UserError, naming the first field that differs."""
    for name in dict.fromkeys((*ours, *theirs)):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{directory} holds another evaluation: {name} is {theirs.get(name)!r} there and "
                f"{ours.get(name)!r} here; name another --to, or give --run.fresh to move it aside"
            )


def _whole(data: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return data.rfind(b"\n") + 1


def write_pages(directory: Path, pages: Mapping[str, MemoryPage]) -> None:
    """Write pages as `<directory>/pages/<content hash>.png`, those that are not there yet."""
    from PIL import Image

    folder = directory / PAGES
    folder.mkdir(exist_ok=True)
    for content_hash, page in pages.items():
        path = folder / f"{content_hash}.png"
        if page.pixels is not None and not path.exists():
            with replacing(path) as partial:
                Image.fromarray(page.pixels).save(partial, format="PNG")


def write_results(directory: Path, entries: Mapping[Place, Mapping[str, Any]]) -> None:
    """Write results.jsonl: a line for each answer, by set, question, sample, method and budget."""
    lines = [_line(result) for entry in entries.values() for result in entry["results"]]
    write_atomically(directory / "results.jsonl", "".join(lines))


def _line(result: Mapping[str, Any]) -> str:
    line = json.dumps(result, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate, which a data file can hold and UTF-8 cannot
        line = json.dumps(result)
    return line + "\n"


def move_aside(directory: Path) -> Path | None:
    """Rename a directory that holds an evaluation, and say to what; anything else is left alone."""
    if not (directory / FOLDER).is_dir():
        return None
    n = next(n for n in range(1, 10**6) if not Path(f"{directory}.{n}").exists())
    return directory.rename(f"{directory}.{n}")
