"""Where a run is written: a folder, or a bucket (`gs://`, `s3://`) that a folder is copied to.

Object stores can neither append to a file nor rename a folder, and a run does both. So a run in a bucket is
worked on in a folder of this machine (`staging`), and what changed is copied after every step: each object
appears whole or not at all. Logs of a step are in the bucket before its checkpoint is, so a run that goes
on elsewhere misses no line. Checkpoints in `gs://` are written there by Orbax itself, by all processes, and
count once its marker is there; elsewhere Orbax writes to the folder, and a finished checkpoint is copied,
its marker last.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from memocr_jax.core.errors import UserError

logger = logging.getLogger("memocr_jax")

CHECKPOINTS = "checkpoints"
COMPLETE = ".complete"
"""Ending of the marker beside a copied checkpoint: `checkpoints/12.complete`."""


def is_remote(path: str | Path) -> bool:
    """Whether this is an address (`gs://bucket/run`) and no folder; also of a Path made from one."""
    return re.match(r"[a-z][a-z0-9+]+:/", str(path)) is not None


def require_local(path: str | Path, option: str) -> None:
    """Raise UserError for a run in a bucket where it cannot be read from there."""
    if is_remote(path):
        raise UserError(
            f"{option} {path}: runs are read from folders; copy it here first "
            "(gcloud storage cp -r, aws s3 sync) and name the copy"
        )


class RunPlace:
    """Where one process writes a run.

    `directory` is the folder that everything is written to, `checkpoints` what `checkpoint.Checkpoints` gets.
    Use it as a context manager; close it after all that writes to the folder.

    Args:
        url: `run.dir`.
        staging: `run.staging`, folder for runs in buckets; "" for one below the system's temporary folder.
        process, processes: this process and their number. All but the first bring only their own logs.

    Raises:
        UserError: the package for that kind of address is missing, the bucket cannot be reached or holds
            something that is not a run, or its kind is for one process only.
    """

    def __init__(
        self, url: str, staging: str = "", fresh: bool = False, process: int = 0, processes: int = 1
    ):
        self.url = url
        self._fs: Any = None
        if not is_remote(url):
            self.directory: Path = Path(url)
            self.checkpoints: str | Path = self.directory
            return
        if fresh:
            raise UserError(f"run.fresh: run.dir {url} is in a bucket; name another run.dir")
        by_orbax = url.startswith("gs://")
        if processes > 1 and not by_orbax:
            raise UserError(
                f"run.dir is {url}: checkpoints of {processes} processes can be written to gs:// or to a "
                "folder that all of them share; use one of these"
            )
        self._fs, self._root = _file_system(url)
        name = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
        base = Path(staging) if staging else Path(tempfile.gettempdir()) / "memocr_jax"
        self.directory = base / f"{name}_{process:04d}"
        self.checkpoints = url if by_orbax else self.directory
        self._copies_checkpoints = not by_orbax
        self._known: dict[str, tuple[int, int] | None] = {}
        """Objects that this process has brought or fetched -> (size, time) of the file; of a marker None."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="run-place")
        self._last: Future[None] | None = None
        shutil.rmtree(self.directory, ignore_errors=True)  # the bucket is what counts
        self.directory.mkdir(parents=True)
        if process == 0:
            self._fetch()

    def push(self, wait: bool = False) -> None:
        """Copy changed files in the background, and with `wait` wait for it. A failure is logged, and the
        files are copied again the next time."""
        if self._fs is None:
            return
        if (failure := self._result()) is not None:
            logger.warning("%s; it is tried again", failure)
        self._last = self._thread.submit(self._copy)
        if wait and (failure := self._result()) is not None:
            logger.warning("%s; it is tried again after the next step", failure)

    def __enter__(self) -> RunPlace:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """Copy what is left. Raises UserError when that fails, unless something else went wrong before."""
        if self._fs is None:
            return
        self._result()
        self._last = self._thread.submit(self._copy)
        failure = self._result()
        self._thread.shutdown()
        if failure is not None and kind is None:
            raise UserError(f"{failure}; what is missing there is in {self.directory}")

    def _result(self) -> str | None:
        """Wait for the copying under way, and return its error if it failed."""
        future, self._last = self._last, None
        error = None if future is None else future.exception()
        return error and f"run.dir {self.url}: copying failed ({type(error).__name__}: {error})"

    def _fetch(self) -> None:
        """Bring what is in the bucket into the folder: all but checkpoints that Orbax reads there, and
        checkpoints that were not finished, which are removed."""
        prefix = f"{self._root}/"
        try:
            names = sorted(path.removeprefix(prefix) for path in self._fs.find(self._root))
        except Exception as error:
            raise UserError(
                f"run.dir {self.url}: cannot be read ({type(error).__name__}: {error}); check the address "
                "and this machine's credentials"
            ) from error
        if names and "config.yaml" not in names:
            raise UserError(f"run.dir {self.url}: holds files that are not a run's; name another directory")
        finished = {name.removesuffix(COMPLETE) for name in names if name.endswith(COMPLETE)}
        for name in names:
            step = _step(name)
            if step is None:
                self._bring(name)
            elif not self._copies_checkpoints:
                continue
            elif name.endswith(COMPLETE):
                self._known[name] = None
            elif step in finished:
                self._bring(name)
            else:
                self._fs.rm_file(prefix + name)

    def _bring(self, name: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(f"{self._root}/{name}", str(path))
        self._known[name] = _signature(path)

    def _copy(self) -> None:
        files = self._files()
        gone = [name for name in self._known if name not in files]
        # Markers go first: a checkpoint that is being removed no longer counts.
        for name in sorted(gone, key=lambda name: not name.endswith(COMPLETE)):
            if name.endswith(COMPLETE) and self._has_step(name.removesuffix(COMPLETE)):
                continue
            self._fs.rm_file(f"{self._root}/{name}")
            del self._known[name]
        steps = {step for name in files if (step := _step(name))}
        for name, signature in files.items():
            if self._known.get(name) == signature:
                continue
            try:
                self._fs.put_file(str(self.directory / name), f"{self._root}/{name}")
                self._known[name] = signature
            except FileNotFoundError:  # removed meanwhile, as old checkpoints are
                steps.discard(_step(name))
        for step in steps:
            if step + COMPLETE not in self._known:
                self._fs.pipe_file(f"{self._root}/{step}{COMPLETE}", b"")
                self._known[step + COMPLETE] = None

    def _has_step(self, step: str) -> bool:
        return (self.directory / step).is_dir()

    def _files(self) -> dict[str, tuple[int, int]]:
        """Finished files of the folder; a checkpoint's directory has its final name once it is finished."""
        found = {}
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            unfinished = path.suffix == ".tmp" or (name.startswith(f"{CHECKPOINTS}/") and not _step(name))
            with contextlib.suppress(FileNotFoundError):
                if not unfinished and path.is_file():
                    found[name] = _signature(path)
        return found


def _step(name: str) -> str | None:
    """`checkpoints/12` of an object of that checkpoint, or of its marker."""
    found = re.match(rf"{CHECKPOINTS}/\d+(?=/|{re.escape(COMPLETE)}$)", name)
    return found.group() if found else None


def _signature(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _file_system(url: str) -> tuple[Any, str]:
    """(file system, path within it) of an address. Raises UserError."""
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = {"gs": "gcs", "s3": "s3"}.get(url.partition(":")[0])
        advice = f": pip install 'memocr_jax[{extra}]'" if extra else ""
        raise UserError(f"run.dir is {url}, and the package that reaches it is missing{advice}") from error
    except ValueError as error:
        raise UserError(f"run.dir is {url}: {error}; use a folder, gs:// or s3://") from error
    return fs, root.rstrip("/")
