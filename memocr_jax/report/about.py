"""Writes `about.json` at the start of a run: versions, devices, command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from render.files import write_atomically

PACKAGES = ("memocr_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "playwright")


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions by name, leaving out what is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_about(run_dir: Path, *, model_parameters: int, **extra: Any) -> Path:
    """Write `<run_dir>/about.json` for the run of this process.

    Args:
        run_dir: directory of the run; must exist.
        model_parameters: number of parameters of the model.
        extra: further JSON values worth keeping, by name.

    Returns:
        The path written. A later call, as after a resume, replaces it.
    """
    import jax  # only here: reading a run back must not start a backend

    devices = jax.devices()
    about = {
        "model_parameters": int(model_parameters),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
        "command": ["python", *sys.orig_argv[1:]],
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **extra,
    }
    path = Path(run_dir) / "about.json"
    write_atomically(path, json.dumps(about, indent=1) + "\n")
    return path
