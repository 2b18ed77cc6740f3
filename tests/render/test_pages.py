"""What a page shows: whole, with regions, honest statuses, and the same pixels every time."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from render import PageStatus, RenderPool, RenderSettings

MEMORY = """# Gunnar Almqvist

## Key facts
- **Film**: *The Silent Harbour* (1951)
- Born 12 May 1908 in <span style="color:#c00;font-size:20px">Umeå</span>, ~~Norway~~ Sweden

| Name | Role |
|---|---|
| Larsson | `composer` |

> The harbour was silent that night.

1. one
2. two
"""


SCRIPTS = (Path(__file__).parents[2] / "docs" / "images" / "scripts.md").read_text(encoding="utf-8")
"""A memory in twenty scripts, with emoji and mathematics."""

WORDS = "river harbour film 1923 museum director Umeå the of in Ωμέγα born later"


def memories(count, seed=0):
    rng = random.Random(seed)
    words = WORDS.split()
    made = []
    for _ in range(count):
        lines = ["#" * rng.randint(1, 4) + " " + " ".join(rng.choices(words, k=4))]
        for _ in range(rng.randint(1, 12)):
            text = " ".join(rng.choices(words, k=rng.randint(1, 25)))
            lines.append(
                rng.choice(
                    ["- {}", "> {}", "{}\n", "**{}**\n", "`{}`\n", "1. {}", "*{}*", "- [ ] {}"]
                ).format(text)
            )
        lines.append(
            rng.choice(
                [
                    "",
                    "---",
                    "|a|b|\n|-|-|\n|1|2|",
                    "<font size=6 color=blue>x</font>",
                    "<u>y</u><mark>z</mark>",
                ]
            )
        )
        made.append("\n".join(lines))
    return made


def ink(pixels):
    return (pixels.min(axis=2) < 128).sum()


def test_a_page_and_its_regions(pool):
    page = pool.render([MEMORY])[0]
    assert page.status is PageStatus.OK and page.detail == ""
    height, width, _ = page.pixels.shape
    assert width % 28 == 0 and height % 28 == 0 and width <= 728
    texts = {region.text: region for region in page.regions}
    title = texts["Gunnar Almqvist"]
    assert (title.kind, title.level) == ("heading", 1)
    assert (texts["Key facts"].kind, texts["Key facts"].level) == ("heading", 2)
    assert texts["Film: The Silent Harbour (1951)"].kind == "body"
    assert texts["composer"].kind == "body" and texts["The harbour was silent that night."].kind == "body"
    for region in page.regions:
        box = page.pixels[region.y : region.y + region.height, region.x : region.x + region.width]
        assert box.shape[:2] == (region.height, region.width), "a region lies on the page"
        assert (box.min(axis=2) < 200).any(), f"no ink where {region.text!r} should be"
    # All ink of the title lies in its box: nothing right of it in those rows, within the page's margin above.
    rows = page.pixels[title.y : title.y + title.height]
    assert ink(rows[:, title.x + title.width + 1 :]) == 0
    # The span is red.
    red = (page.pixels[..., 0] > 180) & (page.pixels[..., 1] < 60) & (page.pixels[..., 2] < 60)
    assert red.sum() > 50


def test_headings_are_larger_than_text(pool):
    page = pool.render(["# Heading\n\nHeading"])[0]
    heading, body = page.regions
    assert heading.height > 1.7 * body.height and heading.width > 1.7 * body.width


def test_nothing_is_cut_off_a_long_memory(pool):
    lines = [f"line {i}" for i in range(160)]
    page = pool.render(["\n\n".join(lines)])[0]
    assert page.status is PageStatus.OK
    assert [region.text for region in page.regions] == lines, "every line is on the page"
    # Upstream's viewport would have ended at 656 px.
    assert page.pixels.shape[0] > 3000
    last = page.regions[-1]
    assert ink(page.pixels[last.y : last.y + last.height]) > 20


def test_a_long_memory_among_short_ones_spans_several_sheets(pool):
    long = "\n\n".join(f"row {i}" for i in range(330))
    assert pool.render([long])[0].pixels.shape[0] > 6000
    pages = pool.render([long + "x", "a", long + "y", "b", long + "z"])
    assert [page.pixels.shape[0] > 6000 for page in pages] == [True, False, True, False, True]
    np.testing.assert_array_equal(pages[0].pixels[:6000], pages[4].pixels[:6000])


def test_every_pixel_is_the_same_alone_tiled_or_shuffled():
    scripts = [SCRIPTS, "中文", "かな", "ไทย ก้ำ", "$x^2$", "🎓"]
    texts = [*memories(48), MEMORY, *scripts, "x", "<u>a</u>", "- a\n  - b\n    - c\n      - d"]
    base = RenderSettings(cache_mb=0)
    with RenderPool(dataclasses.replace(base, workers=1)) as one:
        alone = [one.render([text])[0] for text in texts]
        together = one.render(texts)
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    with RenderPool(dataclasses.replace(base, workers=3)) as three:
        shuffled = dict(zip(order, three.render([texts[i] for i in order]), strict=True))
    for i, text in enumerate(texts):
        for other in (together[i], shuffled[i]):
            assert other.content_hash == alone[i].content_hash
            assert other.status == alone[i].status and other.regions == alone[i].regions
            np.testing.assert_array_equal(other.pixels, alone[i].pixels, err_msg=text)


def test_limits_cut_and_say_so():
    settings = RenderSettings(workers=1, cache_mb=0, max_height_px=280, max_chars=5000, max_elements=60)
    with RenderPool(settings) as pool:
        text = "\n\n".join(f"line {i}" for i in range(60))
        page, short, long, many = pool.render([text, "short", "x" * 5001, "*a* " * 60])
    assert page.status is PageStatus.TRUNCATED and page.pixels.shape[0] == 280
    # 60 lines of 13 x 1.22 = 15.86 px, 59 gaps of 0.3 x 13 = 3.9 px and two margins of 14 px: 1,209.7 px.
    cut = int(page.detail.split()[0])
    assert 927 <= cut <= 931 and "of the height cut off" in page.detail
    assert short.status is PageStatus.OK
    assert (
        long.status is PageStatus.TOO_LARGE and "render.max_chars 5000" in long.detail and long.pixels is None
    )
    assert many.status is PageStatus.TOO_LARGE and "render.max_elements 60" in many.detail


def test_viewport_mode_cuts_as_upstream_did():
    text = "\n\n".join(f"line {i}" for i in range(60))
    kind = {"theme": "upstream", "width_px": 1152, "margin_px": 0, "viewport_height_px": 656}
    with RenderPool(RenderSettings(workers=1, cache_mb=0, **kind)) as pool:
        long, short = pool.render([text, "one line"])
    assert long.status is PageStatus.TRUNCATED and long.pixels.shape[0] == 656
    assert short.status is PageStatus.OK and short.pixels.shape[0] < 60


def test_width_scale_margin_and_shrink(pool):
    text = "word " * 60
    with RenderPool(RenderSettings(workers=1, cache_mb=0, width_px=392, margin_px=28, scale=2.0)) as other:
        plain, large = pool.render([text])[0], other.render([text])[0]
        narrow = other.submit(text, width_px=196).result()
    assert plain.pixels.shape[1] == 728 and large.pixels.shape[1] == 392 and narrow.pixels.shape[1] == 196
    assert large.regions[0].x == 28
    assert ink(large.pixels[:28]) == 0 and ink(large.pixels[:, :28]) == 0, "the margin is blank"
    # Twice the size on half the width: four times the lines, each twice as high; margins aside.
    assert 6.5 < large.regions[0].height / plain.regions[0].height < 9.5
    assert pool.render(["Paris"])[0].pixels.shape == (56, 84, 3)
    with RenderPool(RenderSettings(workers=1, cache_mb=0, shrink=False)) as other:
        assert other.render(["Paris"])[0].pixels.shape == (56, 728, 3)


def test_what_is_too_wide_is_drawn_smaller(pool):
    row = "|" + "cell|" * 60 + "\n"
    page, hopeless = pool.render(
        [row + "|" + "-|" * 60 + "\n" + row, "|a" * 900 + "|\n" + "|-" * 900 + "|\n"]
    )
    assert page.status is PageStatus.OK and "of its size to fit the width" in page.detail
    assert len(page.regions) == 120 and all(r.x + r.width <= page.pixels.shape[1] for r in page.regions)
    assert hopeless.status is PageStatus.TRUNCATED and "px of the width cut off" in hopeless.detail


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t\n",
        "# ",
        "<b></b><!-- x -->",
        "\u200b\u200b",
        "---",
        "<span style='color:#fff'>white</span>",
    ],
)
def test_what_shows_nothing_is_empty(pool, text):
    page = pool.render([text])[0]
    assert page.status is PageStatus.EMPTY and page.pixels is None and "nothing visible" in page.detail


def test_missing_glyphs_are_named(pool):
    page, plain = pool.render(["tofu \u1820 \u0f40", "tofu"])
    assert page.status is PageStatus.MISSING_GLYPHS and page.pixels is not None
    assert page.detail == "2 characters drawn as empty boxes: no font has U+0F40, U+1820"
    assert ink(page.pixels) > ink(plain.pixels) + 20, "the boxes can be seen"
    accents = pool.render(["Ωμέγα Йод ē̄ ǻ ∑ → ½ ﬁ 𝔸 שלום عربي"])[0]
    assert accents.status is PageStatus.OK, accents.detail


@pytest.mark.parametrize(
    "text",
    [
        "# 北京大学 是 中国的大学 🎓",
        "繁體中文 臺灣",
        "日本語 かな カナ",
        "한국어 대한민국",
        "हिन्दी में लिखा है",
        "বাংলা ભાષા ਪੰਜਾਬੀ ଓଡ଼ିଆ",
        "தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල",
        "ภาษาไทย ກຳລັງ ភាសាខ្មែរ မြန်မာ",
        "አማርኛ ქართული Հայերեն",
        "العربية فارسی اردو עברית שָׁלוֹם",
        "🎉 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 1️⃣ 🇩🇪 ❤️",
    ],
)
def test_every_script_is_drawn(pool, text):
    page = pool.render([text])[0]
    assert page.status is PageStatus.OK, page.detail
    # Nothing is a box: its letters differ from the same number of boxes.
    assert page.regions[0].text == " ".join(text.removeprefix("# ").split())
    assert ink(page.pixels) > 10 * len(text.split())


def test_han_characters_have_the_forms_of_the_language_beside_them(pool):
    chinese, japanese, marked = pool.render(
        ["直接 骨", "直接 骨 かな", "直接 骨 <span lang='ja'>直接 骨</span>"]
    )
    width = chinese.regions[0].x + chinese.regions[0].width
    part = [page.pixels[:40, :width] for page in (chinese, japanese, marked)]
    assert (part[0] != part[1]).any(), "骨 and 直 are written differently in Japanese"
    np.testing.assert_array_equal(part[0], part[2])
    half = marked.regions[0]
    assert (marked.pixels[:, half.x :] != 255).any()


def test_bold_is_bold_in_other_scripts(pool):
    plain, bold = pool.render(["北京大学 हिन्दी ไทย", "**北京大学 हिन्दी ไทย**"])
    assert ink(bold.pixels) > 1.2 * ink(plain.pixels)


def test_fonts_are_the_shipped_ones_whatever_the_system_has(pool, tmp_path, monkeypatch):
    # A Fontconfig without any font: no page may change.
    empty = tmp_path / "fonts.conf"
    empty.write_text('<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig></fontconfig>')
    monkeypatch.setenv("FONTCONFIG_FILE", str(empty))
    with RenderPool(RenderSettings(workers=1, cache_mb=0)) as bare:
        pages = bare.render([MEMORY, SCRIPTS, "tofu \u1820"])
    for page, other in zip(pages, pool.render([MEMORY, SCRIPTS, "tofu \u1820"]), strict=True):
        np.testing.assert_array_equal(page.pixels, other.pixels)


def test_themes_and_html_mode(pool, tmp_path):
    small_settings = RenderSettings(workers=1, cache_mb=0, theme="small", width_px=168, margin_px=4)
    with RenderPool(small_settings) as small:
        page = small.render(["# Amsterdam\n\nfounded **1275**"])[0]
    assert page.pixels.shape[1] <= 168 and page.pixels.size < 168 * 84 * 3 + 1
    css = tmp_path / "mine.css"
    css.write_text(".memory { font: 14px page-sans; color: #00f } h1 { color: #0a0 }")
    with RenderPool(RenderSettings(workers=1, cache_mb=0, theme=str(css)), mode="html") as mine:
        page, flex = mine.render(
            ["<h1>A</h1>text", "<div style='display:flex;gap:30px'><p>left</p><p>right</p></div>"]
        )
    assert page.regions[0].kind == "heading"
    assert (page.pixels[..., 2].astype(int) - page.pixels[..., 0] > 150).any(), "blue text"
    assert (page.pixels[..., 1].astype(int) - page.pixels[..., 0] > 100).any(), "a green heading"
    left, right = flex.regions
    assert left.y == right.y and right.x > left.x + left.width + 25


def test_full_chromium_draws_the_same(pool):
    full = shutil.which("chromium") or shutil.which("google-chrome")
    if full is None:
        pytest.skip("only chromium-headless-shell is installed")
    with RenderPool(RenderSettings(workers=1, cache_mb=0, chromium=full)) as other:
        pages = other.render([MEMORY, "short"])
    np.testing.assert_array_equal(pages[0].pixels, pool.render([MEMORY])[0].pixels)
