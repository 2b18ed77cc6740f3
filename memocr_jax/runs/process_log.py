"""A log file of each process of a run."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax

logger = logging.getLogger("memocr_jax")


class ProcessLog:
    """A file with the log records of this process's libraries, its warnings and the error that ended it."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> ProcessLog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = logging.FileHandler(self._path, encoding="utf-8", delay=True)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._handler.setLevel(logging.INFO)
        root = logging.getLogger()
        root.addHandler(self._handler)
        # Our own steps go to the file alone, whatever others have attached to the root.
        self._before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self._handler)
        # With no other handler, warnings would no longer reach the terminal.
        self._terminal = logging.StreamHandler()
        self._terminal.setLevel(logging.WARNING)
        self._alone = len(root.handlers) == 1
        if self._alone:
            root.addHandler(self._terminal)
        logger.info(
            "process %d of %d on %s, pid %d, Python %s, jax %s, devices %s",
            jax.process_index(),
            jax.process_count(),
            platform.node(),
            os.getpid(),
            platform.python_version(),
            jax.__version__,
            ", ".join(str(device) for device in jax.local_devices()),
        )
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            logger.error("ended by %s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
        else:
            logger.info("ended")
        root = logging.getLogger()
        root.removeHandler(self._handler)
        logger.removeHandler(self._handler)
        if self._alone:
            root.removeHandler(self._terminal)
        logger.level, logger.propagate = self._before
        self._handler.close()
