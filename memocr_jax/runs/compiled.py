"""Compiled programs: kept on disk for later runs, freed in a process that has too many."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import jax

logger = logging.getLogger("memocr_jax")


def use_compilation_cache(directory: str) -> None:
    """Keep compiled programs in a folder (or bucket) that all processes and later runs share; empty leaves it
    to JAX_COMPILATION_CACHE_DIR."""
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def free_programs() -> None:
    """Free the programs of a training or evaluation that is over, before the next one in the same process.

    On a CPU each holds dozens of memory mappings, of which Linux gives a process 65,530; with none left XLA
    crashes.
    """
    gc.collect()
    jax.clear_caches()


def free_programs_if_many(share: float = 0.5) -> bool:
    """`free_programs` once this process has more than `share` of its memory mappings; returns whether it did.

    For a process that lives long and meets new shapes, between two pieces of work: what is needed again is
    compiled again, or comes from the persistent cache.
    """
    try:
        used = Path("/proc/self/maps").read_bytes().count(b"\n")
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    except OSError:  # not Linux
        return False
    if used <= share * limit:
        return False
    logger.warning("%d of %d memory mappings are taken: compiled programs are freed", used, limit)
    free_programs()
    return True
