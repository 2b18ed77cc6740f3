"""Which characters a system font draws, of those that the shipped fonts lack."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence

from render import theme
from render.chromium import Browser
from render.sheet import CSP, attach, load

MOST_CHARACTERS = 256
"""Characters of one page that are looked up: a third of a millisecond each."""

# The browser says of each character which font drew it. Where no font has it, that is the one asked for, with
# its empty box: a small shipped one (25 kB), for the CSS domain reads every style sheet of the document.
_FONT = "DejaVuSansDisplay.ttf"
_SHOW = """(characters => {
  const spans = characters.map(character => {
    const span = document.createElement('span');
    span.textContent = character;
    return span;
  });
  document.body.replaceChildren(...spans);
  return document.body.offsetHeight;
})(%s)"""


class GlyphProbe:
    """A page of a browser on which characters are tried out. Raises what `Browser.call` raises."""

    def __init__(self, browser: Browser, deadline: float):
        """`deadline`, here and below, is in `time.monotonic` seconds."""
        self._browser = browser
        data = base64.b64encode((theme.font_folder() / _FONT).read_bytes()).decode()
        html = (
            '<!doctype html><html lang="en"><head>'
            f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
            f"<style>@font-face{{font-family:box;src:url(data:font/ttf;base64,{data})}}"
            "body{font-family:box}</style></head><body></body></html>"
        )
        self._session = attach(browser, deadline - time.monotonic())
        load(browser, self._session, html, deadline - time.monotonic())
        self._evaluate("document.fonts.load('16px box').then(() => 0)", deadline)
        for domain in ("DOM", "CSS"):
            self._call(f"{domain}.enable", {}, deadline)

    def system_drawn(self, characters: Sequence[str], deadline: float) -> set[str]:
        """Those of the characters, none of them in the shipped fonts, that a font of this machine draws."""
        self._evaluate(_SHOW % json.dumps(list(characters)), deadline)
        root = self._call("DOM.getDocument", {"depth": 0}, deadline)["root"]["nodeId"]
        spans = self._call("DOM.querySelectorAll", {"nodeId": root, "selector": "span"}, deadline)["nodeIds"]
        drawn = set()
        for character, span in zip(characters, spans, strict=True):
            fonts = self._call("CSS.getPlatformFontsForNode", {"nodeId": span}, deadline)["fonts"]
            if any(not font["isCustomFont"] for font in fonts):
                drawn.add(character)
        return drawn

    def _evaluate(self, script: str, deadline: float) -> None:
        self._call("Runtime.evaluate", {"expression": script, "awaitPromise": True}, deadline)

    def _call(self, method: str, params: dict, deadline: float) -> dict:
        return self._browser.call(method, params, self._session, deadline - time.monotonic())
