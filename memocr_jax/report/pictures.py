"""The pictures of a report: PNG files inside one folder, up to a total size."""

from __future__ import annotations

import base64
import dataclasses
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from render.views import fit

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG picture of the report."""

    data_uri: str
    width_px: int
    height_px: int


class Pictures:
    """The PNG files of one folder, each picture once, until a number of bytes is used up; then no more."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder.resolve()
        self.bytes_left = max_bytes
        self.left_out = 0
        self._full = False
        self._known: dict[Any, Picture | None] = {}
        self._decoded: tuple[str, np.ndarray | None] = ("", None)

    def file(self, name: Any) -> Picture | None:
        """The picture in a file named relative to the folder; None when there is none to show."""
        if not isinstance(name, str) or not name:
            return None
        if name not in self._known:
            data = self._read(name)
            self._known[name] = data and self._add(data, *struct.unpack(">II", data[16:24]))
        return self._known[name]

    def view(self, name: str, budget: int) -> Picture | None:
        """A page as it is read at a budget of visual tokens, by the function that every reader uses."""
        if self._full:
            self.left_out += 1
            return None
        if self._decoded[0] != name:
            self._decoded = (name, self._decode(name))
        pixels = self._decoded[1]
        if pixels is None:
            return None
        view = fit(pixels, budget)
        key = (name, view.shape)
        if key not in self._known:
            file = io.BytesIO()
            grey = (view == view[:, :, :1]).all()  # most pages are black on white; lossless either way
            Image.fromarray(view[:, :, 0] if grey else view).save(file, format="PNG")
            self._known[key] = self._add(file.getvalue(), view.shape[1], view.shape[0])
        return self._known[key]

    def _read(self, name: str) -> bytes | None:
        """A file's bytes, when it is a PNG file inside the folder."""
        try:
            path = (self.folder / name).resolve()
            inside = path.is_relative_to(self.folder) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            return None
        data = path.read_bytes() if inside else b""
        return data if len(data) >= 24 and data.startswith(PNG_MAGIC) else None

    def _decode(self, name: str) -> np.ndarray | None:
        data = self._read(name)
        try:
            with Image.open(io.BytesIO(data or b"")) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # no picture after all
            return None

    def _add(self, data: bytes, width_px: int, height_px: int) -> Picture | None:
        if self._full or len(data) > self.bytes_left:
            self._full = True
            self.left_out += 1
            return None
        self.bytes_left -= len(data)
        return Picture("data:image/png;base64," + base64.b64encode(data).decode(), width_px, height_px)
