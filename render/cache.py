"""A cache of drawn pages by content hash: decoded in memory and as PNG files on disk, both bounded."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from render.codec import CodecError, decode_page, encode_page
from render.errors import RenderError
from render.files import write_atomically
from render.types import MemoryPage, PageStatus

_LASTING = {PageStatus.OK, PageStatus.TRUNCATED, PageStatus.MISSING_GLYPHS, PageStatus.EMPTY}
"""Statuses that depend on the memory alone; pages of other statuses are drawn again the next time."""
_EMPTY_PAGE_BYTES = 1024


class PageCache:
    """A bounded store of `MemoryPage`s, safe for several threads; its folder for several processes."""

    def __init__(self, max_mb: int = 256, folder: str = ""):
        """Keep at most `max_mb` MiB of pixels in memory and, when `folder` is named, of files there.

        Raises `RenderError` when the folder cannot be made.
        """
        self._limit = max_mb << 20
        self._folder = Path(folder) if folder else None
        self._pages: OrderedDict[str, MemoryPage] = OrderedDict()
        self._bytes = 0
        self._disk_bytes = 0
        self._lock = threading.Lock()
        if self._folder:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RenderError(
                    f"render.cache_dir is {folder!r}, which cannot be made ({error.strerror}); name another"
                ) from None
            self._disk_bytes = sum(size for _, size, _ in self._files())

    def get(self, content_hash: str) -> MemoryPage | None:
        """The page of a content hash, or None."""
        with self._lock:
            if page := self._pages.get(content_hash):
                self._pages.move_to_end(content_hash)
                return page
        page = self._read(content_hash) if self._folder else None
        if page:
            self._remember(page)
        return page

    def put(self, page: MemoryPage) -> None:
        """Keep a page, if its status is one that will not change."""
        if page.status not in _LASTING or not self._limit:
            return
        self._remember(page)
        if self._folder and page.pixels is not None:
            self._write(page)

    def _remember(self, page: MemoryPage) -> None:
        with self._lock:
            if page.content_hash in self._pages:
                return
            self._pages[page.content_hash] = page
            self._bytes += _size(page)
            while self._bytes > self._limit:
                self._bytes -= _size(self._pages.popitem(last=False)[1])

    def _path(self, content_hash: str) -> Path:
        return self._folder / content_hash[:2] / f"{content_hash}.png"

    def _read(self, content_hash: str) -> MemoryPage | None:
        path = self._path(content_hash)
        try:
            page = decode_page(path.read_bytes())
            if page.content_hash != content_hash:
                raise CodecError("another page's file")
            os.utime(path)
        except CodecError:
            path.unlink(missing_ok=True)  # cut short or not ours: draw it again
            return None
        except OSError:
            return None
        return page

    def _write(self, page: MemoryPage) -> None:
        path = self._path(page.content_hash)
        data = encode_page(page)
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, data)
        except OSError:  # a full disk costs the cache, not the page
            return
        with self._lock:
            self._disk_bytes += len(data)
            if self._disk_bytes > self._limit:
                self._prune()

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob("??/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def _prune(self) -> None:
        """Remove the files used longest ago until nine tenths of the bound are left."""
        files = self._files()
        self._disk_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._disk_bytes <= self._limit * 0.9:
                break
            path.unlink(missing_ok=True)
            self._disk_bytes -= size


def _size(page: MemoryPage) -> int:
    return _EMPTY_PAGE_BYTES + (0 if page.pixels is None else page.pixels.nbytes)
