"""The one exception of the renderer."""

from __future__ import annotations


class RenderError(Exception):
    """The renderer cannot work as asked: bad setting, missing Chromium, unreachable server.

    The message is one line that names the field, the value and the fix. A single memory that cannot be
    drawn is never an exception: it is a `PageStatus`.
    """
