"""A page as one PNG file: pixels, and status, detail and regions in a text chunk. Cache and wire share it."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from render.types import MemoryPage, PageStatus, Region

_CHUNK = "page"


class CodecError(ValueError):
    """These bytes are no page."""


def encode_page(page: MemoryPage) -> bytes:
    """PNG bytes of a page with pixels. Level 1: pages are written more often than read."""
    record = {"status": page.status, "detail": page.detail, "content_hash": page.content_hash}
    record["regions"] = [dataclasses.asdict(region) for region in page.regions]
    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(record))
    file = io.BytesIO()
    Image.fromarray(page.pixels).save(file, "PNG", compress_level=1, pnginfo=info)
    return file.getvalue()


def decode_page(data: bytes) -> MemoryPage:
    """The page that `encode_page` wrote. Raises `CodecError` for anything else."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            record = json.loads(image.text[_CHUNK])
            pixels = np.array(image.convert("RGB"))
        regions = tuple(Region(**region) for region in record["regions"])
        page = MemoryPage(
            pixels, PageStatus(record["status"]), record["detail"], record["content_hash"], regions
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise CodecError(f"not a page ({type(error).__name__})") from None
    pixels.setflags(write=False)
    return page
