"""Files that appear whole or not at all: a reader, a crash or a full disk never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".tmp"
"""Ending of a file that is still being written. A process that is killed leaves it behind."""


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write or replace the file `path`. Text is written as UTF-8, with "?" for what UTF-8 cannot hold (half
    of a surrogate pair)."""
    with replacing(path) as partial:
        partial.write_bytes(data.encode("utf-8", "replace") if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new path in the folder of `path`, for whatever writes a file by its name. When the block ends, the
    file takes the place of `path`; when the block raises, it is removed and `path` is as it was."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
