"""Many memories on one sheet: laid out together, captured in few large frames, cut apart again.

All pages of a sheet stand below one another in one persistent document. Each is contained (CSS
containment), starts at a whole px and has its own width, so its pixels do not depend on its neighbours.
The sheet is captured in frames of fixed size; page i is rows y_i .. y_i + h_i of the frames' concatenation.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image

from render import theme
from render.chromium import Browser, BrowserGone, ProtocolError
from render.settings import TOKEN_PX, RenderSettings
from render.types import Region

FRAME_HEIGHT_PX = 2048

CSP = "default-src 'none'; style-src 'unsafe-inline'; font-src data:"
"""First wall: the document may load nothing but its own style and fonts."""

# Runs in the document's own world, to which no memory can add a script: scripts are off for pages, and
# `innerHTML` never runs any.
LAYOUT_JS = """
const sheet = document.getElementById('sheet');
const HEADINGS = 'h1,h2,h3,h4,h5,h6';
const BLOCKS = 'p,li,td,th,pre,dt,dd,blockquote,caption,figcaption,summary,div';
function regions(page, origin) {
  const blocks = new Map(), range = document.createRange();
  const texts = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    if (!node.data.trim()) continue;
    range.selectNodeContents(node);
    const r = range.getBoundingClientRect();
    if (!r.width || !r.height) continue;
    const owner = node.parentElement.closest(HEADINGS) || node.parentElement.closest(BLOCKS);
    const block = blocks.get(owner);
    if (!block) { blocks.set(owner, [r.left, r.top, r.right, r.bottom, node.data]); continue; }
    block[0] = Math.min(block[0], r.left); block[1] = Math.min(block[1], r.top);
    block[2] = Math.max(block[2], r.right); block[3] = Math.max(block[3], r.bottom);
    block[4] += node.data;
  }
  return [...blocks].map(([owner, b]) => [
    owner.matches(HEADINGS) ? +owner.tagName[1] : 0,
    Math.floor(b[0] - origin.left), Math.floor(b[1] - origin.top),
    Math.ceil(b[2] - origin.left), Math.ceil(b[3] - origin.top), b[4].replace(/\\s+/g, ' ').trim()]);
}
function lay(memories, o) {
  scrollTo(0, 0);
  sheet.textContent = '';
  const pages = memories.map(html => {
    const page = document.createElement('div');
    page.className = 'page';
    page.innerHTML = '<div class="memory"></div>';
    page.firstChild.innerHTML = html;
    return page;
  });
  sheet.append(...pages);
  const up = px => Math.ceil(px / o.token - 1e-3) * o.token;
  const sizes = pages.map(page => {
    const box = page.getBoundingClientRect(), memory = page.firstChild;
    return { box, wide: Math.max(0, page.scrollWidth - Math.ceil(box.width)),
             height: Math.max(box.height, page.scrollHeight) };
  });
  sizes.forEach((size, i) => {
    size.width = o.shrink ? Math.min(o.width, up(size.box.width)) : o.width;
    size.whole = Math.ceil(size.height - 1e-3);
    size.height = Math.min(up(size.height), o.limit);
    pages[i].style.cssText = `width:${size.width}px;height:${size.height}px`;
  });
  let y = 0;
  const out = sizes.map((size, i) => {
    const origin = pages[i].getBoundingClientRect();
    const entry = { y, width: size.width, height: size.height, whole: size.whole, wide: size.wide,
                    regions: regions(pages[i], origin) };
    y += size.height;
    return entry;
  });
  sheet.style.height = Math.ceil(y / o.frame) * o.frame + 'px';
  return out;
}
Promise.all([...document.fonts].map(face => face.load())).then(() => document.fonts.size);
"""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One memory as drawn: pixels u8[H, W, 3]; how many px of it lie outside; its regions."""

    pixels: np.ndarray
    cut_height_px: int
    cut_width_px: int
    regions: tuple[Region, ...]


class Sheet:
    """A persistent page of one browser, on which memories are drawn."""

    def __init__(self, browser: Browser, settings: RenderSettings, timeout_s: float = 30.0):
        self._browser = browser
        self._settings = settings
        self._width = 0
        size = {"width": settings.width_px, "height": FRAME_HEIGHT_PX}
        try:
            made = browser.call(
                "Target.createTarget",
                {"url": "about:blank", "enableBeginFrameControl": True, **size},
                timeout_s=timeout_s,
            )
            self._begin_frame = True
        except ProtocolError:  # full Chromium: frames come by themselves
            made = browser.call("Target.createTarget", {"url": "about:blank", **size}, timeout_s=timeout_s)
            self._begin_frame = False
        attach = {"targetId": made["targetId"], "flatten": True}
        self._session = browser.call("Target.attachToTarget", attach, timeout_s=timeout_s)["sessionId"]
        self._call("Page.enable", timeout_s=timeout_s)
        self._call("Emulation.setScriptExecutionDisabled", {"value": True}, timeout_s)
        self._call("Fetch.enable", {"patterns": [{"urlPattern": "*"}]}, timeout_s)
        frame = self._call("Page.getFrameTree", timeout_s=timeout_s)["frameTree"]["frame"]["id"]
        self._call("Page.setDocumentContent", {"frameId": frame, "html": document(settings)}, timeout_s)
        self._evaluate(LAYOUT_JS, timeout_s, await_promise=True)

    def draw(self, fragments: Sequence[str], width_px: int, deadline: float) -> list[Drawn]:
        """Draw sanitised HTML fragments, each `width_px` wide at most, until `deadline` (monotonic seconds).

        Raises what `Browser` raises; then the browser must be replaced.
        """
        settings = self._settings
        if width_px != self._width:
            metrics = {"width": width_px, "height": FRAME_HEIGHT_PX, "deviceScaleFactor": 1, "mobile": False}
            self._call("Emulation.setDeviceMetricsOverride", metrics, deadline - time.monotonic())
            self._width = width_px
        options = {
            "width": width_px,
            "limit": settings.height_limit_px,
            "frame": FRAME_HEIGHT_PX,
            "token": TOKEN_PX if not settings.viewport_height_px else 1,
            "shrink": settings.shrink,
        }
        script = f"lay({json.dumps(list(fragments))},{json.dumps(options)})"
        layout = self._evaluate(script, deadline - time.monotonic())
        pages = [np.empty((page["height"], page["width"], 3), np.uint8) for page in layout]
        for top in range(0, sum(page["height"] for page in layout), FRAME_HEIGHT_PX):
            self._evaluate(f"scrollTo(0,{top})", deadline - time.monotonic())
            frame = self._frame(deadline)
            for page, pixels in zip(layout, pages, strict=True):
                _copy_rows(frame, top, pixels, page["y"])
        return [_drawn(page, pixels) for page, pixels in zip(layout, pages, strict=True)]

    def _frame(self, deadline: float) -> np.ndarray:
        shot = {"format": "png", "optimizeForSpeed": True}
        if not self._begin_frame:
            data = self._call("Page.captureScreenshot", shot, deadline - time.monotonic())["data"]
        else:
            while True:
                answer = self._call(
                    "HeadlessExperimental.beginFrame", {"screenshot": shot}, deadline - time.monotonic()
                )
                if data := answer.get("screenshotData"):
                    break
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pixels = np.asarray(image.convert("RGB"))
        if pixels.shape != (FRAME_HEIGHT_PX, self._width, 3):
            raise BrowserGone(f"a frame has shape {pixels.shape}")
        return pixels

    def _evaluate(self, script: str, timeout_s: float, await_promise: bool = False):
        params = {"expression": script, "returnByValue": True, "awaitPromise": await_promise}
        answer = self._call("Runtime.evaluate", params, timeout_s)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise ProtocolError(
                thrown.get("exception", thrown).get("description", "the layout script failed")
            )
        return answer["result"].get("value")

    def _call(self, method: str, params: dict | None = None, timeout_s: float = 10.0) -> dict:
        return self._browser.call(method, params, self._session, timeout_s)


def _copy_rows(frame: np.ndarray, frame_y: int, page: np.ndarray, page_y: int) -> None:
    """Copy the rows that a frame [F, W, 3] at sheet row `frame_y` shares with a page at `page_y`."""
    first, last = max(frame_y, page_y), min(frame_y + len(frame), page_y + len(page))
    if first < last:
        page[first - page_y : last - page_y] = frame[first - frame_y : last - frame_y, : page.shape[1]]


def _drawn(page: dict, pixels: np.ndarray) -> Drawn:
    pixels.setflags(write=False)
    regions = tuple(
        Region("heading" if level else "body", level, x0, y0, x1 - x0, y1 - y0, text)
        for level, x0, y0, x1, y1, text in page["regions"]
    )
    return Drawn(pixels, max(0, page["whole"] - page["height"]), page["wide"], regions)


def document(settings: RenderSettings) -> str:
    """The sheet's document: content policy, fonts, base style, theme."""
    page_css = (
        f".page{{width:{'fit-content' if settings.shrink else '100%'};max-width:100vw;"
        f"padding:{settings.margin_px}px}}.memory{{zoom:{settings.scale}}}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
        f"<style>{theme.font_css()}</style><style>{theme.BASE_CSS}{page_css}</style>"
        f"<style>{theme.theme_css(settings.theme)}</style></head>"
        '<body><div id="sheet"></div></body></html>'
    )
