"""Draws many memories on one sheet: lays them out together, captures them at once, cuts them apart.

All pages of a sheet stand below one another in one persistent document. Each is contained (CSS
containment), starts at a whole px and has its own width, so its pixels do not depend on its neighbours.

The capture replays the document's paint record in Chromium (`LayerTree.replaySnapshot`). A screenshot would
send the same record through raster tiles, the display compositor and a read-back first, which costs half as
much again and whose tile borders leave traces in the anti-aliasing of curves (docs/render.md).
"""

from __future__ import annotations

import binascii
import dataclasses
import json
import time
from collections.abc import Sequence

import numpy as np

from render import fonts, png, theme
from render.chromium import Browser, BrowserGone, PageFault, ProtocolError
from render.settings import TOKEN_PX, RenderSettings
from render.types import Region

MAX_SHEET_PX = 16_384
"""Highest sheet; memories that need more are drawn on several (Skia's bitmaps end at 32,767 rows)."""

LEAST_ZOOM = 0.25
"""A memory that is too wide (a table of many columns) is drawn smaller, down to this zoom; then it is cut."""

CSP = "default-src 'none'; style-src 'unsafe-inline'; font-src data:"
"""First wall: the document may load nothing but its own style and fonts."""

# Runs in the document's own world, to which no memory can add a script: scripts are off for pages, and
# `innerHTML` never runs any.
LAYOUT_JS = (
    f"""
const FALLBACK = {json.dumps(fonts.FALLBACK)};
"""
    + r"""
const sheet = document.getElementById('sheet');
// A green row below the last page: Chromium captures nothing, silently, when it cannot allocate a bitmap.
const witness = document.createElement('div');
witness.style.cssText = 'height:1px;background:#0f0';
const KANA = /[\u3041-\u30ff]/, HANGUL = /[\uac00-\ud7a3]/;
const HEADINGS = 'h1,h2,h3,h4,h5,h6';
const BLOCKS = 'p,li,td,th,pre,dt,dd,blockquote,caption,figcaption,summary,div';
function regions(page, origin) {
  const blocks = new Map(), range = document.createRange();
  const nodes = document.createTreeWalker(page, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
    const owner = node.parentElement.closest(HEADINGS) || node.parentElement.closest(BLOCKS);
    const block = blocks.get(owner);
    if (block && (node.nodeName === 'BR' || node.data && !node.data.trim())) block[4] += ' ';
    if (!node.data || !node.data.trim()) continue;
    if (!node.parentElement.checkVisibility({ opacityProperty: true })) continue;
    range.selectNodeContents(node);
    let r = range.getBoundingClientRect();
    if (!r.width || !r.height || r.top >= origin.bottom || r.left >= origin.right) continue;
    let text = node.data;
    if (r.bottom > origin.bottom + 1) {  // the page ends within this text
      let whole = 0;
      for (let cut = text.length; cut - whole > 1;) {
        const middle = (whole + cut) >> 1;
        range.setEnd(node, middle);
        if (range.getBoundingClientRect().bottom > origin.bottom + 1) cut = middle; else whole = middle;
      }
      if (!(text = text.slice(0, whole)).trim()) continue;
      range.setEnd(node, whole);
      r = range.getBoundingClientRect();
    }
    if (!block) { blocks.set(owner, [r.left, r.top, r.right, r.bottom, text]); continue; }
    block[0] = Math.min(block[0], r.left); block[1] = Math.min(block[1], r.top);
    block[2] = Math.max(block[2], r.right); block[3] = Math.max(block[3], r.bottom);
    block[4] += text;
  }
  return [...blocks].map(([owner, b]) => [
    owner.matches(HEADINGS) ? +owner.tagName[1] : 0,
    Math.floor(b[0] - origin.left), Math.floor(b[1] - origin.top),
    Math.ceil(b[2] - origin.left), Math.ceil(b[3] - origin.top), b[4].replace(/\s+/g, ' ').trim()]);
}
function lay(memories, o) {
  sheet.textContent = '';
  const pages = memories.map(html => {
    const page = document.createElement('div');
    page.className = 'page';
    page.innerHTML = '<div class="memory"></div>';
    page.firstChild.innerHTML = html;
    for (const element of page.querySelectorAll('[style*=page-any]'))
      element.style.fontFamily = element.style.fontFamily.replace('page-any', FALLBACK);
    // Han characters have the forms of the language whose own letters stand beside them, else Chinese ones.
    if (KANA.test(html)) page.lang = 'ja';
    else if (HANGUL.test(html)) page.lang = 'ko';
    return page;
  });
  sheet.append(...pages, witness);
  const up = px => Math.ceil(px / o.token - 1e-3) * o.token;
  const measure = page => {
    const box = page.getBoundingClientRect();
    return { box, wide: Math.max(0, page.scrollWidth - Math.ceil(box.width)),
             height: Math.max(box.height, page.scrollHeight) };
  };
  let sizes = pages.map(measure);
  for (let attempt = 0; attempt < 3 && sizes.some(size => size.wide); attempt++) {
    // Too wide (a table of many columns): smaller rather than cut off.
    sizes.forEach((size, i) => {
      if (!size.wide) return;
      const zoom = Math.max(o.least, +(pages[i].dataset.zoom || 1) * 0.99 * o.room / (o.room + size.wide));
      pages[i].dataset.zoom = zoom;
      pages[i].firstChild.style.zoom = zoom * o.scale;
    });
    sizes = sizes.map((size, i) => size.wide ? measure(pages[i]) : size);
  }
  sizes.forEach((size, i) => {
    size.width = o.shrink ? Math.min(o.width, up(size.box.width)) : o.width;
    size.whole = Math.ceil(size.height - 1e-3);
    size.height = Math.min(up(size.height), o.limit);
    pages[i].style.cssText = `width:${size.width}px;height:${size.height}px`;
  });
  let y = 0;
  return JSON.stringify(sizes.map((size, i) => {
    const entry = { y, width: size.width, height: size.height, whole: size.whole, wide: size.wide,
                    zoom: +(pages[i].dataset.zoom || 1),
                    regions: regions(pages[i], pages[i].getBoundingClientRect()) };
    y += size.height;
    return entry;
  }));
}
Promise.all([...document.fonts].map(face => face.load())).then(() => document.fonts.size);
"""
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One memory as drawn."""

    pixels: np.ndarray
    """u8[H, W, 3]"""
    cut_height_px: int
    """How much of it lies below the page's end."""
    cut_width_px: int
    zoom: float
    """Below 1 when it had to be drawn smaller to fit the width."""
    regions: tuple[Region, ...]


class Sheet:
    """A persistent page of one browser, on which memories are drawn."""

    def __init__(self, browser: Browser, settings: RenderSettings, timeout_s: float = 30.0):
        """Raises what `Browser.call` raises."""
        self._browser = browser
        self.settings = settings
        self._layer = ""
        try:
            self._session = attach(browser, timeout_s, enableBeginFrameControl=True)
            self._call("HeadlessExperimental.beginFrame", {"noDisplayUpdates": True}, timeout_s)
            self._begin_frame = True
        except ProtocolError:  # full Chromium, where frames come by themselves
            self._session = attach(browser, timeout_s)
            self._begin_frame = False
        load(browser, self._session, document(settings), timeout_s)
        self._evaluate(LAYOUT_JS, timeout_s, await_promise=True)
        self._call("LayerTree.enable", {}, timeout_s)

    def draw(self, fragments: Sequence[str], width_px: int, deadline: float) -> list[Drawn]:
        """Draw sanitised HTML fragments, each `width_px` wide at most, until `deadline` (monotonic seconds).

        Raises what `Browser` raises; then the browser must be replaced.
        """
        layout = self.lay_out(fragments, width_px, deadline)
        height = sum(page["height"] for page in layout)
        if height > MAX_SHEET_PX and len(fragments) > 1:
            half = len(fragments) // 2
            parts = (fragments[:half], fragments[half:])
            return [page for part in parts for page in self.draw(part, width_px, deadline)]
        pages = [np.empty((page["height"], page["width"], 3), np.uint8) for page in layout]
        witness = np.empty((1, width_px, 3), np.uint8)
        self.resize(width_px, height + 1, deadline)
        self.paint(deadline)
        try:
            png.decode_into(self.replay(deadline), [*pages, witness])
        except ValueError as error:
            raise BrowserGone(f"the capture cannot be read: {error}") from None
        if (witness != (0, 255, 0)).any():
            raise PageFault("the capture came out blank: out of memory")
        return [_drawn(page, pixels) for page, pixels in zip(layout, pages, strict=True)]

    def lay_out(self, fragments: Sequence[str], width_px: int, deadline: float) -> list[dict]:
        """Put the fragments on the sheet; their places, sizes and regions in px, top to bottom."""
        self.resize(width_px, TOKEN_PX, deadline)
        options = {
            "width": width_px,
            "limit": self.settings.height_limit_px,
            "token": 1 if self.settings.viewport_height_px else TOKEN_PX,
            "shrink": self.settings.shrink,
            "scale": self.settings.scale,
            "room": width_px - 2 * self.settings.margin_px,
            "least": LEAST_ZOOM,
        }
        script = f"lay({json.dumps(list(fragments))},{json.dumps(options)})"
        return json.loads(self._evaluate(script, _left(deadline)))

    def resize(self, width_px: int, height_px: int, deadline: float) -> None:
        """Make the viewport as large as the sheet: Chromium paints no further than that."""
        metrics = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", metrics, _left(deadline))

    def paint(self, deadline: float) -> None:
        """Bring the paint record up to date. The first time this goes to the display, to learn the layer."""
        if not self._begin_frame:
            clip = {"x": 0, "y": 0, "width": 1, "height": 1, "scale": 1}
            self._call("Page.captureScreenshot", {"clip": clip}, _left(deadline))
        else:
            frame = {"noDisplayUpdates": bool(self._layer)}
            self._call("HeadlessExperimental.beginFrame", frame, _left(deadline))
        if not self._layer:
            self._layer = self._find_layer(deadline)

    def replay(self, deadline: float) -> bytes:
        """PNG file of the whole sheet as painted."""
        made = self._call("LayerTree.makeSnapshot", {"layerId": self._layer}, _left(deadline))
        snapshot = {"snapshotId": made["snapshotId"]}
        url = self._call("LayerTree.replaySnapshot", snapshot, _left(deadline))["dataURL"]
        data = binascii.a2b_base64(url.removeprefix("data:image/png;base64,"))
        self._browser.send("LayerTree.releaseSnapshot", snapshot, self._session)
        return data

    def screenshot(self, deadline: float) -> bytes:
        """PNG file of the same by way of the display compositor: a benchmark compares the two."""
        shot = {"screenshot": {"format": "png", "optimizeForSpeed": True}}
        while True:  # the first frames after a resize may come without an image
            answer = self._call("HeadlessExperimental.beginFrame", shot, _left(deadline))
            if data := answer.get("screenshotData"):
                return bytes(data)

    def _find_layer(self, deadline: float) -> str:
        """Id of the one layer that the sheet is painted on."""
        self._evaluate("0", _left(deadline))  # the list of layers is on its way before this answer
        layers = self._browser.layers.get(self._session, [])
        drawn = [layer for layer in layers if layer["drawsContent"] and layer["height"] > 0]
        if len(drawn) != 1:
            raise BrowserGone(f"the sheet is painted on {len(drawn)} layers instead of one")
        return drawn[0]["layerId"]

    def _evaluate(self, script: str, timeout_s: float, await_promise: bool = False):
        params = {"expression": script, "returnByValue": True, "awaitPromise": await_promise}
        answer = self._call("Runtime.evaluate", params, timeout_s)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise ProtocolError(
                thrown.get("exception", thrown).get("description", "the layout script failed")
            )
        return answer["result"].get("value")

    def _call(self, method: str, params: dict, timeout_s: float) -> dict:
        return self._browser.call(method, params, self._session, timeout_s)


def attach(browser: Browser, timeout_s: float, **options: bool) -> str:
    """Open a page of its own; the session with it."""
    made = browser.call("Target.createTarget", {"url": "about:blank"} | options, "", timeout_s)
    target = {"targetId": made["targetId"], "flatten": True}
    return browser.call("Target.attachToTarget", target, "", timeout_s)["sessionId"]


def load(browser: Browser, session: str, html: str, timeout_s: float) -> None:
    """Make `html` the document of a page, with scripts off and every request intercepted."""
    browser.call("Page.enable", {}, session, timeout_s)
    browser.call("Emulation.setScriptExecutionDisabled", {"value": True}, session, timeout_s)
    browser.call("Fetch.enable", {"patterns": [{"urlPattern": "*"}]}, session, timeout_s)
    frame = browser.call("Page.getFrameTree", {}, session, timeout_s)["frameTree"]["frame"]["id"]
    browser.call("Page.setDocumentContent", {"frameId": frame, "html": html}, session, timeout_s)


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _drawn(page: dict, pixels: np.ndarray) -> Drawn:
    pixels.setflags(write=False)
    regions = tuple(
        Region("heading" if level else "body", level, x0, y0, x1 - x0, y1 - y0, text)
        for level, x0, y0, x1, y1, text in page["regions"]
        if _shows(pixels[max(y0, 0) : y1, max(x0, 0) : x1])
    )
    return Drawn(pixels, max(0, page["whole"] - page["height"]), page["wide"], page["zoom"], regions)


def _shows(box: np.ndarray) -> bool:
    """Whether a part of a page has more than one colour: white text on white is not on the page."""
    return bool(box.size) and any((row != box[0, 0]).any() for row in box)


def document(settings: RenderSettings) -> str:
    """The sheet's document: content policy, fonts, base style, theme."""
    page_css = (
        f".page{{width:{'fit-content' if settings.shrink else '100%'};max-width:100vw;"
        f"padding:{settings.margin_px}px}}.memory{{zoom:{settings.scale}}}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">'
        f"<style>{fonts.face_css()}</style><style>{theme.BASE_CSS}{page_css}</style>"
        f"<style>{theme.theme_css(settings).replace('page-any', fonts.FALLBACK)}</style></head>"
        '<body><div id="sheet"></div></body></html>'
    )
