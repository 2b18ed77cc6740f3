"""Hostile memories: each a page or a typed status in time, nothing fetched, the pool as good as new."""

import random
import socket
import threading
import time

import numpy as np
import pytest

from render import PageStatus, RenderPool, RenderSettings
from tests.waiting import LIMIT_S, wait_until

FRAGMENTS = (
    "<script>fetch('{url}')</script>",
    "<script src={url}></script>",
    "<img src={url} onerror=fetch('{url}')>",
    "<img srcset='{url} 1x' loading=eager>",
    "<body onload=location='{url}'>",
    "<svg onload=fetch('{url}')><image href={url} /><use href='{url}#x'/></svg>",
    "<iframe src={url}></iframe><iframe srcdoc='<img src={url}>'></iframe>",
    "<iframe src=file:///etc/passwd></iframe>",
    "<embed src=file:///etc/passwd><object data={url}></object>",
    "<meta http-equiv=refresh content='0;url={url}'>",
    "<link rel=stylesheet href={url}><link rel=prefetch href={url}><link rel=dns-prefetch href={url}>",
    "<style>@import url({url}); body{{background:url({url})}}</style>",
    "<style>@font-face{{font-family:x;src:url({url})}} *{{font-family:x}}</style>",
    "<div style='background:url({url})'>x</div>",
    "<div style=\"background-image:image-set('{url}' 1x);border-image:url({url})\">x</div>",
    "<ul style='list-style:url({url})'><li>x</ul>",
    "<p style='cursor:url({url}),auto;content:url({url});filter:url({url}#f);mask:url({url})'>x</p>",
    "<a href={url} ping={url} autofocus onfocus=fetch('{url}')>x</a>",
    "<form action={url}><input type=image src={url}><button autofocus formaction={url}>b</button></form>",
    "<video src={url} poster={url} autoplay></video><audio src={url} autoplay></audio>",
    "<base href={url}>![x](a.png)",
    "![x]({url}) [y]({url} 'z') <{url}>",
    "<object type=text/html data='data:text/html,<script>fetch(\"{url}\")</script>'></object>",
    "<style>@keyframes a{{from{{left:0}}to{{left:9em}}}} *{{animation:a 1ms infinite}}</style>moving",
    "<marquee>x</marquee><blink>x</blink>",
    "<div style='animation:a 1s infinite;transition:all 9s'>x</div>",
    "<div style='position:fixed;left:-9999px;top:-9999px'>gone</div>",
    "<div style='position:absolute;z-index:2147483647;width:100vw;height:100vh;background:red'>over</div>",
    "<div style='margin:-500px;transform:translate(-900px)'>x</div>",
    "<span style='font-size:1000000px'>HUGE</span>",
    "<span style='font-size:1e9em'>HUGE</span>",
    "<font size=999999>x</font><font size=-999>y</font>",
    "<div style='width:1e9px;height:1e9px;padding:1e8px'>x</div>",
    "<div style='letter-spacing:1e6px;line-height:1e6'>x y z</div>",
    "<div style='column-count:100000;gap:1e6px'>x y z</div>",
    "<div style='display:grid;grid-template-columns:repeat(100000,1px)'>x</div>",
    "<table style='border-spacing:99999px'><tr><td colspan=100000 rowspan=60000>x</table>",
    "<details><summary>s</summary>hidden</details><dialog open>d</dialog>",
    "<template><b>t</b></template><noscript>n</noscript><plaintext>p",
    "<!--<img src={url}>--><![CDATA[<img src={url}>]]><?php echo 1 ?>",
    "<math><mtext><table><mglyph><style><img src={url} onerror=1></style></mglyph></table></mtext></math>",
    "</div></div></body></html><div id=sheet class=page>escape</div>",
    "<textarea><script>1</script></textarea><title>x</title><xmp><b>",
    "<select><option>a<select>b</select>",
    "<b><i><u><s><b><i></b></u></i>",
    "a\x00b\x1b[31m\x07\x7f",
    "\ud800 lone \udfff surrogates \ufffe\uffff",
    "‮right‬ to ‏left‏ עברית العربية",
    "\u200b\u200c\u200d\u2060\ufeff zero\u200bwidth",
    "Z" + "\u0301\u0302\u0303\u0327" * 200 + "algo",
    "中文 日本語 한국어 ไทย हिन्दी 🎉👩‍👩‍👧‍👦🏳️‍🌈",
    "&#0;&#x110000;&#xD800;&bogus;&amp;lt;b&gt;",
    "```\nunclosed",
    "|a|b|\n|-|-|\n" + "|1|2|\n" * 50,
    "$$\\frac{1}{2}$$ \\boxed{x}",
    "",
    " \t\n ",
)


STYLES = ("color:red", "width:0", "font-size:0", "display:none", "opacity:0", "height:1px;display:flex")


def large() -> list[str]:
    """Inputs at and over the limits."""
    return [
        "x" * 1_000_000,
        "word " * 200_000,
        "x" * 99_999,
        "W" * 40_000,
        "<div>" * 10_000 + "deep",
        "<b>" * 10_000 + "deep",
        "<blockquote>" * 5_000 + "deep",
        "<table>" * 3_000 + "deep",
        "<ul><li>" * 4_000 + "deep",
        ">" * 10_000 + "deep",
        "- " * 10_000 + "deep",
        "[" * 50_000,
        "*a **a " * 10_000,
        "`" * 50_000,
        "<table>" + "<tr><td>1" * 1_000_000 + "</table>",
        "<table>" + "<tr><td>1" * 9_000 + "</table>",
        "<table><tr>" + "<td>1" * 5_000 + "</table>",
        "|" + "a|" * 2_000 + "\n|" + "-|" * 2_000 + "\n",
        "# h\n" * 20_000,
        "\n" * 99_000 + "x",
        "<br>" * 19_000 + "x",
        "a\u0301" * 45_000,
        "🎉" * 30_000,
        "\u202e" * 50_000 + "x",
        "<p style='font-size:399px'>" + "HUGE " * 500,
        "&" * 99_000,
        "<" * 99_000,
        "\x00" * 99_000,
        "<font size=7 color=red>" * 9_000 + "x",
        "<div style='display:flex'>" * 1_000 + "x",
        "<div style='display:grid'>" * 1_000 + "x",
        "<div style='column-count:3'>" * 200 + "x y z " * 100,
        "<table><tr><td>" * 800 + "x",
        "<ruby>x<rt>" * 3_000,
    ]


def generated(count: int, url: str, seed: int = 0) -> list[str]:
    """`count` mixtures of the fragments, cut, repeated, nested and spliced with random characters."""
    rng = random.Random(seed)
    made = []
    while len(made) < count:
        parts = [
            fragment.format(url=url) if "{url}" in fragment else fragment
            for fragment in rng.choices(FRAGMENTS, k=rng.randint(1, 5))
        ]
        text = rng.choice(["", " ", "\n", "\n\n", "# ", "- ", "> ", "|"]).join(parts)
        match rng.randrange(6):
            case 0:
                text = text[: rng.randint(0, len(text))]
            case 1:
                text *= rng.randint(1, 20)
            case 2:
                at = rng.randint(0, len(text))
                noise = "".join(
                    chr(rng.choice([rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)]))
                    for _ in range(rng.randint(1, 40))
                )
                text = text[:at] + noise + text[at:]
            case 3:
                tag = rng.choice(["div", "span", "table", "b", "font", "li", "svg", "p", "a"])
                text = f"<{tag} style='{rng.choice(STYLES)}'>{text}</{tag}>"
            case 4:
                text = "".join(rng.sample(list(text), len(text))) if len(text) < 2000 else text[::-1]
            case _:
                pass
        made.append(text)
    return made


SETTINGS = RenderSettings(workers=2, cache_mb=0, timeout_s=6.0)
WITH_PIXELS = {PageStatus.OK, PageStatus.TRUNCATED, PageStatus.MISSING_GLYPHS}


class Listener:
    """A port on loopback that notes every connection."""

    def __init__(self):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/x"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self):
        self._socket.close()


@pytest.fixture
def listener():
    listener = Listener()
    # Does it notice anything at all?
    socket.create_connection(("127.0.0.1", int(listener.url.split(":")[2].split("/")[0]))).close()
    wait_until(lambda: listener.connections)
    assert listener.connections == 1
    listener.connections = 0
    yield listener
    listener.close()


def check(inputs, mode, listener, settings=SETTINGS):
    """Render all inputs; returns the statuses' counts and the longest time of one input alone."""
    counts: dict[str, int] = {}
    with RenderPool(settings, mode) as pool:
        probe = pool.render(["# probe\n\nstill **here**"])[0]
        futures = [pool.submit(text) for text in inputs]
        for text, future in zip(inputs, futures, strict=True):
            # An input waits for the others; its own time is limited by the pool. A lost future hangs here.
            page = future.result(timeout=LIMIT_S)
            counts[page.status] = counts.get(page.status, 0) + 1
            assert isinstance(page.status, PageStatus)
            assert (page.pixels is not None) == (page.status in WITH_PIXELS), (page.status, text[:80])
            if page.pixels is not None:
                height, width, channels = page.pixels.shape
                assert 1 <= width <= settings.width_px and 1 <= height <= settings.height_limit_px
                assert channels == 3 and page.pixels.dtype == np.uint8
            assert page.status is not PageStatus.FAILED, (page.detail, text[:200])
        again = pool.render(["# probe\n\nstill **here**"])[0]
    np.testing.assert_array_equal(probe.pixels, again.pixels, "the pool no longer draws as before")
    assert listener.connections == 0, "a page reached the network"
    return counts


@pytest.mark.parametrize("mode", ["markdown", "html"])
def test_hand_made(mode, listener):
    inputs = [f.format(url=listener.url) if "{url}" in f else f for f in FRAGMENTS]
    counts = check(inputs, mode, listener)
    # Everything small draws; what shows nothing says so.
    assert set(counts) <= WITH_PIXELS | {PageStatus.EMPTY}, counts
    assert counts[PageStatus.OK] > 10


@pytest.mark.parametrize("mode", ["markdown", "html"])
def test_generated(mode, listener):
    counts = check(generated(150, listener.url, seed=1), mode, listener)
    assert counts[PageStatus.OK] > 30, counts


def test_large(listener):
    counts = check(large(), "markdown", listener)
    assert counts[PageStatus.TOO_LARGE] >= 2, counts


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["markdown", "html"])
def test_two_thousand(mode, listener):
    inputs = [f.format(url=listener.url) if "{url}" in f else f for f in FRAGMENTS]
    inputs += large() + generated(1200, listener.url, seed=2)
    started = time.monotonic()
    counts = check(inputs, mode, listener)
    print(f"{mode}: {len(inputs)} inputs in {time.monotonic() - started:.0f} s: {counts}")
