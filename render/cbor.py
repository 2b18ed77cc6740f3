"""The subset of CBOR (RFC 8949) that Chromium's DevTools pipe speaks with `--remote-debugging-pipe=cbor`.

Why not JSON: a captured sheet is some megabytes of text. As CBOR Chromium passes it on as it is, and here
it is one slice of the buffer; as JSON both sides walk through every character (measured: docs/render.md).

Chromium's own conventions: every map and array is of indefinite length and wrapped in an envelope (tag 24
and a byte string of 32-bit length); text is UTF-8 when ASCII and otherwise a byte string of UTF-16 code
units; binary data is a byte string under tag 22.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 7
"""Length of a message's envelope header: d8 18 5a and the length of the rest, big-endian."""
_ENVELOPE = b"\xd8\x18\x5a"
_END = 0xFF


class CborError(ValueError):
    """Bytes that Chromium does not send."""


def body_length(header: bytes) -> int:
    """Number of bytes that follow a message's header."""
    if header[:3] != _ENVELOPE:
        raise CborError(f"no envelope: {bytes(header[:3]).hex()}")
    return struct.unpack_from(">I", header, 3)[0]


def encode(value: object) -> bytes:
    """A message or a part of one: dict, list, str, int, float, bool or None."""
    if isinstance(value, dict):
        pairs = b"".join(encode(key) + encode(item) for key, item in value.items())
        return _envelope(b"\xbf" + pairs + b"\xff")
    if isinstance(value, list | tuple):
        return _envelope(b"\x9f" + b"".join(map(encode, value)) + b"\xff")
    if isinstance(value, str):
        text = value.encode()
        return _head(0x60, len(text)) + text
    if value is True or value is False or value is None:
        return {True: b"\xf5", False: b"\xf4", None: b"\xf6"}[value]
    if isinstance(value, int):
        return _head(0x00, value) if value >= 0 else _head(0x20, -1 - value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    raise CborError(f"a {type(value).__name__} has no place in a command")


def decode(message: memoryview) -> object:
    """The value of a whole message, envelope included. ASCII text of 64 KiB and more stays a memoryview."""
    value, end = _value(message, 0)
    if end != len(message):
        raise CborError("bytes after the message")
    return value


LONG_TEXT_BYTES = 1 << 16


def _envelope(content: bytes) -> bytes:
    return _ENVELOPE + struct.pack(">I", len(content)) + content


def _head(major: int, number: int) -> bytes:
    for limit, code, layout in ((24, None, ""), (1 << 8, 24, ">B"), (1 << 16, 25, ">H"), (1 << 32, 26, ">I")):
        if number < limit:
            return (
                bytes([major | number])
                if code is None
                else bytes([major | code]) + struct.pack(layout, number)
            )
    return bytes([major | 27]) + struct.pack(">Q", number)


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """The number in an item's head, and where the head ends."""
    code = data[at] & 0x1F
    if code < 24:
        return code, at + 1
    layout = {24: ">B", 25: ">H", 26: ">I", 27: ">Q"}.get(code)
    if layout is None:
        raise CborError(f"head {data[at]:#x}")
    return struct.unpack_from(layout, data, at + 1)[0], at + 1 + struct.calcsize(layout)


def _value(data: memoryview, at: int) -> tuple[object, int]:
    first = data[at]
    if first == 0xBF:
        result, at = {}, at + 1
        while data[at] != _END:
            key, at = _value(data, at)
            result[key], at = _value(data, at)
        return result, at + 1
    if first == 0x9F:
        items, at = [], at + 1
        while data[at] != _END:
            item, at = _value(data, at)
            items.append(item)
        return items, at + 1
    if first in _SIMPLE:
        return _SIMPLE[first], at + 1
    if first == 0xFB:
        return struct.unpack_from(">d", data, at + 1)[0], at + 9
    major = first & 0xE0
    number, at = _number(data, at)
    if major == 0x00:
        return number, at
    if major == 0x20:
        return -1 - number, at
    if major == 0xC0 and number == 24:
        _, inside = _number(data, at)
        return _value(data, inside)
    if major == 0xC0 and number == 22:
        length, at = _number(data, at)
        return data[at : at + length], at + length
    piece = data[at : at + number]
    if major == 0x60:
        return (piece if number >= LONG_TEXT_BYTES else str(piece, "utf-8")), at + number
    if major == 0x40:
        return str(piece, "utf-16-le", "replace"), at + number
    raise CborError(f"head {first:#x}")


_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}
