"""Messages of Chromium's DevTools pipe in CBOR (RFC 8949), by way of cbor2 (`--remote-debugging-pipe=cbor`).

Why not JSON: a captured sheet is some megabytes of text, which Chromium and Python would read character by
character (measured: docs/render.md).

Chromium has conventions of its own. Every map and array has an indefinite length and lies in an envelope,
which is tag 24 and a byte string with a 32-bit length. Text is UTF-8 when it is ASCII, and otherwise a byte
string of UTF-16 code units. Binary data is a byte string under tag 22.
"""

from __future__ import annotations

import struct
from typing import Any

import cbor2

HEADER_BYTES = 7
"""Length of a message's envelope header: d8 18 5a and the length of the rest, big-endian."""
_ENVELOPE = b"\xd8\x18\x5a"


class CborError(ValueError):
    """Bytes that Chromium does not send."""


def body_length(header: bytes | bytearray | memoryview) -> int:
    """Number of bytes that follow a message's header."""
    if header[:3] != _ENVELOPE:
        raise CborError(f"no envelope: {bytes(header[:3]).hex()}")
    return struct.unpack_from(">I", header, 3)[0]


def encode(value: object) -> bytes:
    """A message or a part of one: dict, list, str, int, float, bool or None."""
    if isinstance(value, dict):
        content = b"\xbf" + b"".join(cbor2.dumps(key) + encode(item) for key, item in value.items()) + b"\xff"
    elif isinstance(value, list | tuple):
        content = b"\x9f" + b"".join(map(encode, value)) + b"\xff"
    else:
        return cbor2.dumps(value)
    return _ENVELOPE + struct.pack(">I", len(content)) + content


def decode(message: memoryview) -> Any:
    """The value of a whole message, envelope included. Binary data become a memoryview."""
    if body_length(message) != len(message) - HEADER_BYTES:
        raise CborError("bytes after the message")
    try:
        return _text(cbor2.loads(message[HEADER_BYTES:], tag_hook=_opened))
    except cbor2.CBORDecodeError as error:
        raise CborError(str(error)) from error


def _opened(tag: cbor2.CBORTag, immutable: bool) -> Any:
    if tag.tag == 24:
        return cbor2.loads(tag.value, tag_hook=_opened)
    if tag.tag == 22:
        return memoryview(tag.value)
    raise CborError(f"tag {tag.tag}")


def _text(value: Any) -> Any:
    """The value with its byte strings as the text that they are."""
    if isinstance(value, dict):
        return {key: _text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode("utf-16-le", "replace") if isinstance(value, bytes) else value
