"""`python -m render memory.md -o page.png --budget 64`: one memory to one image."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from render.client import open_renderer
from render.errors import RenderError
from render.options import add_settings, run_command, settings_of
from render.settings import MODES


def main(argv: list[str] | None = None) -> int:
    """Draw a file (or standard input) and print size, tokens and status; 1 when there is no page."""
    parser = argparse.ArgumentParser(prog="python -m render", description=main.__doc__)
    parser.add_argument("memory", help="file with the memory, - for standard input")
    parser.add_argument("-o", "--output", required=True, help="image file to write: .png, .jpg or .webp")
    parser.add_argument(
        "--budget", type=int, default=0, help="visual tokens at most; 0 writes the page itself"
    )
    parser.add_argument("--mode", choices=MODES, help="default: html for .html files, else markdown")
    add_settings(parser)
    arguments = parser.parse_args(argv)
    settings = dataclasses.replace(settings_of(arguments), workers=1)
    if arguments.budget < 0:
        raise RenderError(f"--budget is {arguments.budget}; it must be 0 or more")
    mode = arguments.mode or ("html" if arguments.memory.endswith((".html", ".htm")) else "markdown")
    with open_renderer(settings, mode) as renderer:
        page = renderer.render([_read(arguments.memory)])[0]
    if page.pixels is None:
        print(f"{page.status}: {page.detail}", file=sys.stderr)
        return 1
    _write(page, arguments.output, arguments.budget)
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
