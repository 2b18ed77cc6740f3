"""The two formats read by hand: Chromium's CBOR and its PNG files."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from render import cbor, png

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=30,
)


@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=6))
def test_what_is_encoded_can_be_decoded(message):
    data = cbor.encode(message)
    assert cbor.body_length(data) == len(data) - cbor.HEADER_BYTES
    assert cbor.decode(memoryview(data)) == message


def test_bytes_as_chromium_sends_them():
    # {"id": 1, "result": {"v": "é" as UTF-16, "data": binary 01 02}}, each map in its envelope.
    inner = b"\xbf" + b"\x61v\x42\xe9\x00" + b"\x64data\xd6\x42\x01\x02" + b"\xff"
    outer = (
        b"\xbf" + b"\x62id\x01" + b"\x66result\xd8\x18\x5a" + struct.pack(">I", len(inner)) + inner + b"\xff"
    )
    message = b"\xd8\x18\x5a" + struct.pack(">I", len(outer)) + outer
    value = cbor.decode(memoryview(message))
    assert value["id"] == 1 and value["result"]["v"] == "é" and bytes(value["result"]["data"]) == b"\x01\x02"


def test_long_text_is_text():
    message = memoryview(cbor.encode({"url": "x" * (1 << 17)}))
    assert cbor.decode(message) == {"url": "x" * (1 << 17)}


@pytest.mark.parametrize(
    "broken", [b"{}", b"\xd8\x18\x5a\x00\x00\x00\x01\xbf\xff\xff", b"\xd8\x18\x5a\0\0\0\1\x1f"]
)
def test_broken_cbor_is_an_error(broken):
    with pytest.raises(cbor.CborError):
        cbor.body_length(broken)
        cbor.decode(memoryview(broken))


def write_png(rows, colour, filter_type=2):
    """A PNG of rows u8[h, w, c], every row filtered against the one above (2) or not at all (0)."""
    height, width, channels = rows.shape
    flat = rows.reshape(height, width * channels)
    above = np.vstack([np.zeros_like(flat[:1]), flat[:-1]])
    body = flat - above if filter_type == 2 else flat
    raw = np.hstack([np.full((height, 1), filter_type, np.uint8), body]).tobytes()
    packed = zlib.compress(raw)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    middle = b"".join(chunk(b"IDAT", packed[i : i + 1000]) for i in range(0, len(packed), 1000))
    return png._SIGNATURE + chunk(b"IHDR", head) + middle + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour,channels", [(2, 3), (6, 4)])
@pytest.mark.parametrize("filter_type", [0, 2])
def test_pages_are_cut_from_the_image(colour, channels, filter_type):
    image = np.random.default_rng(0).integers(0, 256, (300, 91, channels), dtype=np.uint8)
    data = write_png(image, colour, filter_type)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pages = [np.zeros((h, w, 3), np.uint8) for h, w in ((1, 91), (150, 40), (0, 91), (148, 91), (1, 1))]
    png.decode_into(data, pages)
    at = 0
    for page in pages:
        np.testing.assert_array_equal(page, expected[at : at + len(page), : page.shape[1]])
        at += len(page)


def test_a_grey_palette_or_interlaced_file_goes_to_pillow():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    for mode in ("L", "P", "RGB"):
        file = io.BytesIO()
        image.convert(mode).save(file, "PNG")
        page = np.zeros((20, 30, 3), np.uint8)
        png.decode_into(file.getvalue(), [page])
        np.testing.assert_array_equal(page, np.asarray(image.convert(mode).convert("RGB")))


def test_a_broken_file_is_an_error():
    data = write_png(np.zeros((50, 30, 3), np.uint8), 2)
    page = np.zeros((50, 30, 3), np.uint8)
    for broken in (b"", b"x" * 100, data[:60], data[:-20], data[:45] + b"\x00" * 30 + data[75:]):
        with pytest.raises(ValueError):
            png.decode_into(broken, [page])
    with pytest.raises(ValueError, match="50 rows, the pages 49"):
        png.decode_into(data, [page[:49]])
