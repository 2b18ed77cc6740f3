"""Image files to pixels: one reader for the server, fine-tuning, the processor and everybody else."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import urllib.parse

import numpy as np

from memocr_jax.core.errors import UserError

_DATA_URL = re.compile(r"data:(?P<type>[^,;]*)(?P<parameters>(?:;[^,;]*)*),(?P<data>.*)\Z", re.S | re.I)


Source = str | os.PathLike[str] | bytes | np.ndarray


def read_image(source: Source, max_pixels: int | None = None) -> np.ndarray:
    """Pixels u8[H, W, 3] of an image, as a person sees it.

    It is upright, as its EXIF orientation says; transparent parts are white, as vLLM and qwen_vl_utils have
    them; more than 8 bits a channel are scaled; of an animation it is the first picture.

    Args:
        source: path of a file, `file://` or `data:` URL, bytes of a file, or pixels, which are only checked.
        max_pixels: most pixels that are decoded.

    Raises:
        UserError: what is wrong: no file, no image, broken base64, too many pixels.
    """
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8:
            raise UserError(
                f"an image is {source.dtype}{list(source.shape)}; pixels are uint8[height, width, 3]"
            )
        return source
    data = _bytes_of(source)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise UserError(f"{image.width} x {image.height} px; at most {max_pixels} in all")
            return _pixels(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise UserError(
            f"no image: {len(data)} bytes that begin with {data[:8]!r} are of no known format or broken"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"no image that can be decoded: {error or type(error).__name__}") from None


def _bytes_of(source: str | os.PathLike[str] | bytes) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    name = os.fspath(source)
    if name[:5].lower() == "data:":
        return _decoded(name)
    if name[:7].lower() == "file://":
        name = urllib.parse.unquote(name[7:])
    try:
        with open(name, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise UserError(f"image {name[:200]!r} cannot be read ({error})") from None


def _decoded(url: str) -> bytes:
    """The bytes of a data URL, whose base64 may be broken into lines, lack padding, or be that of URLs."""
    found = _DATA_URL.match(url)
    if found is None:
        raise UserError(f"no image: the data URL has no comma before its data ({url[:40]!r})")
    if not found["type"].lower().startswith("image/"):
        raise UserError(f"no image: the data URL is of type {found['type']!r}, not image/...")
    text = urllib.parse.unquote(found["data"])
    if "base64" not in found["parameters"].lower().split(";"):
        raise UserError("no image: the data URL is not in base64 (data:image/png;base64,...)")
    text = re.sub(r"\s", "", text).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    if wrong := re.search(r"[^A-Za-z0-9+/]", text):
        raise UserError(
            f"no image: {wrong[0]!r} at place {wrong.start()} of the data does not belong in base64"
        )
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise UserError(
            f"no image: {len(text)} characters are no whole base64 text; the data was cut off"
        ) from None


def _pixels(image) -> np.ndarray:
    """Pixels of an opened image, in any of Pillow's modes."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        image = _in_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _in_8_bits(image):
    """A grey image of more than 8 bits, scaled: 65535 (or 1.0) is white, as it was."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        most = 1.0 if values.max(initial=0) <= 1 else 255.0 if values.max(initial=0) <= 255 else 65535.0
    else:
        most = 65535.0
    scaled = np.rint(np.clip(values / most, 0, 1) * 255)
    return Image.fromarray(np.nan_to_num(scaled).astype(np.uint8))
