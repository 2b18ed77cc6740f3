"""Pixels of the PNG files that Chromium writes, straight into the pages' own arrays.

Chromium filters every row against the row above ("Up"). Such a file is inflated piece by piece into warm
memory, undone with one vector addition per row and copied channel by channel: a fifth of the time of a
general decoder, most of which goes into touching fresh memory (docs/render.md). Any other PNG goes to Pillow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from isal import isal_zlib
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_CHANNELS = {2: 3, 6: 4}
"""Colour types of 8-bit RGB and RGBA, and their channels."""
_PIECE_BYTES = 1 << 15
"""Compressed bytes inflated at once: some hundred rows, which stay in the processor's cache."""


class _Unusual(Exception):
    """Not filtered as Chromium does."""


def decode_into(data: bytes, pages: Sequence[np.ndarray]) -> None:
    """Decode a PNG whose rows are the rows of `pages`, one page below the other.

    Each page is u8[h, w, 3] with w at most the image's width (the rest of a row and any alpha are dropped);
    the heights must add up to the image's. Raises `ValueError` when they do not or when `data` is no PNG.
    """
    height = sum(len(page) for page in pages)
    try:
        _decode_up(data, pages, height)
    except _Unusual:
        _decode_any(data, pages, height)
    except (struct.error, isal_zlib.error) as error:
        raise ValueError(f"not a whole PNG file ({error})") from None


def _decode_up(data: bytes, pages: Sequence[np.ndarray], height: int) -> None:
    width, channels = _header(data, height)
    stride = 1 + channels * width
    targets = _row_blocks(pages)
    target = next(targets, None)
    work = np.zeros((1, channels * width), np.uint8)  # row 0 is the row above the block
    carry = b""
    done = 0
    for raw in _inflate(data):
        raw = carry + raw if carry else raw
        count = len(raw) // stride
        carry = raw[count * stride :]
        rows = np.frombuffer(raw, np.uint8, count * stride).reshape(count, stride)
        if not (rows[:, 0] == _UP).all():
            raise _Unusual
        if len(work) <= count:
            work = np.concatenate([work[:1], np.empty((count, work.shape[1]), np.uint8)])
        for i in range(count):
            np.add(work[i], rows[i, 1:], out=work[i + 1])
        block = work[1 : count + 1].reshape(count, width, channels)
        while len(block) and target is not None:
            first, page = target
            part = block[: len(page) - first]
            for channel in range(3):
                page[first : first + len(part), :, channel] = part[:, : page.shape[1], channel]
            block = block[len(part) :]
            first += len(part)
            target = (first, page) if first < len(page) else next(targets, None)
        done += count
        work[0] = work[count]
    if done != height or carry:
        raise ValueError(f"the image has {done} whole rows instead of {height}")


def _header(data: bytes, height: int) -> tuple[int, int]:
    """Width and channels; raises `_Unusual` for another kind of PNG, `ValueError` for another height."""
    if data[:8] != _SIGNATURE:
        raise ValueError("not a PNG file")
    width, rows, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if rows != height:
        raise ValueError(f"the image has {rows} rows, the pages {height}")
    if depth != 8 or interlace or colour not in _CHANNELS:
        raise _Unusual
    return width, _CHANNELS[colour]


def _row_blocks(pages: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    return ((0, page) for page in pages if len(page))


def _inflate(data: bytes) -> Iterator[bytes]:
    """The image's raw bytes in pieces."""
    view = memoryview(data)
    inflater = isal_zlib.decompressobj()
    pieces: list[memoryview] = []
    size, at = 0, len(_SIGNATURE)
    while at < len(view):
        (length,) = struct.unpack_from(">I", view, at)
        kind = view[at + 4 : at + 8]
        if kind == b"IDAT":
            pieces.append(view[at + 8 : at + 8 + length])
            size += length
        if pieces and (size >= _PIECE_BYTES or kind == b"IEND"):
            yield inflater.decompress(b"".join(pieces))
            pieces, size = [], 0
        at += 12 + length


def _decode_any(data: bytes, pages: Sequence[np.ndarray], height: int) -> None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError:
        raise ValueError("not an image") from None
    at = 0
    for page in pages:
        page[:] = pixels[at : at + len(page), : page.shape[1]]
        at += len(page)
