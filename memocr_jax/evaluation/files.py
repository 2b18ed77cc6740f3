"""The results of an analysis: NAME.json, NAME.svg and NAME.md in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.core.errors import UserError
from memocr_jax.evaluation.plots import svg
from render.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_analysis(folder: Path, name: str, data: dict[str, Any], figure: Figure, text: str) -> Path:
    """Write the three files; returns the Markdown's path, which shows the plot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to {folder}: cannot be made ({error.strerror})") from None
    write_atomically(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_atomically(folder / f"{name}.svg", svg(figure))
    path = folder / f"{name}.md"
    write_atomically(path, text)
    return path


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; floats have three digits, None is a dash."""

    def show(value: Any) -> str:
        if value is None:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [head, ["---"] * len(head), *([show(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
