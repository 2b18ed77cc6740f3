"""Pixels of the PNG files that Chromium encodes for speed, in half of Pillow's time.

Such a file holds 8-bit RGB rows that are all filtered against the row above ("Up"): inflating and one
vector addition per row decode it, straight into the pages' own arrays. Anything else goes to Pillow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2


def decode_into(data: bytes, pages: Sequence[np.ndarray]) -> None:
    """Decode a PNG whose rows are the rows of `pages`, one page below the other.

    Each page is u8[h, w, 3] with w at most the image's width (the rest of a row is dropped), and the heights
    must add up to the image's. Raises `ValueError` when they do not or when `data` is no PNG.
    """
    height = sum(len(page) for page in pages)
    rows = _filtered_rows(data)
    if rows is None:
        _decode_slowly(data, pages, height)
        return
    if len(rows) != height:
        raise ValueError(f"the image has {len(rows)} rows, the pages {height}")
    at = 0
    above = np.zeros(rows.shape[1], np.uint8)
    for page in pages:
        count = len(page)
        decoded = (
            page if page.shape[1] * 3 == rows.shape[1] else np.empty((count, rows.shape[1] // 3, 3), np.uint8)
        )
        lines = decoded.reshape(count, -1)
        for row, line in zip(rows[at : at + count], lines, strict=True):
            np.add(above, row, out=line)
            above = line
        if decoded is not page:
            page[:] = decoded[:, : page.shape[1]]
        at += count


def _filtered_rows(data: bytes) -> np.ndarray | None:
    """Rows u8[h, 3 w] of an 8-bit RGB image, each less the row above; None for any other file."""
    view = memoryview(data)
    if view[:8] != _SIGNATURE or len(view) < 33:
        return None
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", view, 16)
    if (depth, colour, interlace) != (8, 2, 0):
        return None
    pieces, at = [], 8
    while at + 8 <= len(view):
        (length,) = struct.unpack_from(">I", view, at)
        if view[at + 4 : at + 8] == b"IDAT":
            pieces.append(view[at + 8 : at + 8 + length])
        at += 12 + length
    size = height * (1 + 3 * width)
    stream = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    raw = isal_zlib.decompress(stream, bufsize=size)
    if len(raw) != size:
        raise ValueError(f"the image has {len(raw)} bytes instead of {size}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 1:] if (rows[:, 0] == _UP).all() else None


def _decode_slowly(data: bytes, pages: Sequence[np.ndarray], height: int) -> None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError:
        raise ValueError("not an image") from None
    if len(pixels) != height:
        raise ValueError(f"the image has {len(pixels)} rows, the pages {height}")
    at = 0
    for page in pages:
        page[:] = pixels[at : at + len(page), : page.shape[1]]
        at += len(page)
