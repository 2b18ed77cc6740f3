"""`python -m render memory.md -o page.png --budget 64`: one memory to one image."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from render.client import open_renderer
from render.errors import RenderError, run_command
from render.options import Hidden, parse_options, settings_of
from render.settings import RenderSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RenderSettings):
    """Draw a file (or standard input) and print size, tokens and status; 1 when there is no page."""

    memory: tyro.conf.Positional[str]
    """File with the memory, - for standard input."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"])]
    """Image file to write: .png, .jpg or .webp."""
    budget: int = 0
    """Visual tokens at most; 0 writes the page itself."""
    mode: Literal["markdown", "html"] | None = None
    """Format of the memory; by default html for .html files, else markdown."""
    theme_css: Hidden[str] = ""


def main(argv: list[str] | None = None) -> int:
    """Draw what the command line names; returns the exit status."""
    options = parse_options(Options, argv, "python -m render")
    settings = dataclasses.replace(settings_of(options), workers=1)
    if options.budget < 0:
        raise RenderError(f"--budget is {options.budget}; it must be 0 or more")
    mode = options.mode or ("html" if options.memory.endswith((".html", ".htm")) else "markdown")
    with open_renderer(settings, mode) as renderer:
        page = renderer.render([_read(options.memory)])[0]
    if page.pixels is None:
        print(f"{page.status}: {page.detail}", file=sys.stderr)
        return 1
    _write(page, options.output, options.budget)
    return 0


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise RenderError(f"memory file {name!r} cannot be read ({error.strerror})") from None
    return data.decode("utf-8", "replace")


def _write(page, output: str, budget_tokens: int) -> None:
    from PIL import Image

    from render.views import fit, image_tokens

    pixels = fit(page.pixels, budget_tokens) if budget_tokens else page.pixels
    try:
        Image.fromarray(pixels).save(output)
    except (OSError, ValueError) as error:
        raise RenderError(f"--output {output!r} cannot be written ({error})") from None
    height, width = pixels.shape[:2]
    tokens = image_tokens(pixels if budget_tokens else fit(pixels, 1 << 20))
    print(
        f"{output}: {width} x {height} px, {tokens} tokens, {page.status}"
        + f" ({page.detail})" * bool(page.detail)
    )


if __name__ == "__main__":
    run_command(main)
