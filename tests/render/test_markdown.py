"""Memories become harmless HTML and lose no text."""

import re
from html.parser import HTMLParser

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render import mathematics
from render.markdown import (
    ATTRIBUTES,
    ELEMENTS,
    PROPERTIES,
    clean_text,
    safe_style,
    shows_text,
    to_html,
)


def test_commonmark_tables_and_strikethrough():
    html = to_html("# A *b*\n\n|x|y|\n|-|-|\n|1|~~2~~|\n\n1. one\n2. two", "markdown")
    assert "<h1>A <em>b</em></h1>" in html
    assert "<th>x</th>" in html and "<del>2</del>" in html
    assert "<ol>\n<li>one</li>\n<li>two</li>\n</ol>" in html


def test_inline_colours_and_sizes_stay():
    html = to_html(
        '<span style="color:red;font-size:30px">a</span> <font color="blue" size="5">b</font>', "markdown"
    )
    assert '<span style="color:red;font-size:min(30px, 400px)">a</span>' in html.replace(
        "font-size: ", "font-size:"
    )
    assert '<font color="blue" size="5">b</font>' in html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=http://127.0.0.1/x onerror=alert(1)>",
        "<iframe src=file:///etc/passwd></iframe>",
        "<a href='javascript:alert(1)' onclick=alert(1)>x</a>",
        "<meta http-equiv=refresh content='0;url=http://127.0.0.1/'>",
        "<link rel=stylesheet href=http://127.0.0.1/>",
        "<style>@import 'http://127.0.0.1/';</style>",
        "<svg onload=alert(1)><use href='http://127.0.0.1/#a'/></svg>",
        "<object data=http://127.0.0.1/></object><embed src=http://127.0.0.1/>",
        "<div style='background:url(http://127.0.0.1/)'>x</div>",
        "<div style='background-image:url(http://127.0.0.1/)'>x</div>",
        "<div style='position:fixed;top:-100px;z-index:9'>x</div>",
        "<div style='animation:a 1s infinite;transition:all 1s;transform:rotate(9deg)'>x</div>",
        "<div style='margin-left:-9999px;text-indent:-5em'>x</div>",
        "<div style='width:expression(alert(1))'>x</div>",
        "<div style='color:\\72 ed;color:var(--x);color:env(x)'>x</div>",
        "<div style='height:100vh;width:50vmax'>x</div>",
        "<form action=http://127.0.0.1/><input autofocus onfocus=alert(1)></form>",
        "<base href=http://127.0.0.1/><video src=http://127.0.0.1/></video>",
        "![x](http://127.0.0.1/x.png) [y](http://127.0.0.1/)",
        "<template><script>1</script></template><noscript><img src=x></noscript>",
        "<math><mi xlink:href='http://127.0.0.1/'>x</mi></math>",
        "<div id=sheet class=page name=x>x</div>",
    ],
)
@pytest.mark.parametrize("mode", ["markdown", "html"])
def test_nothing_hostile_survives(hostile, mode):
    # Only what stands within tags can act; as text (Markdown that HTML does not parse) anything is harmless.
    tags = "".join(re.findall(r"<[^>]*>", to_html(hostile, mode))).lower()
    forbidden = (
        "script",
        "url",
        "http",
        "file:",
        "on",
        "position",
        "-9",
        "src",
        "href",
        "anim",
        "trans",
        "@",
    )
    for word in (*forbidden, "expression", "var(", "env(", "\\", "id=", "class=", "100vh", "vmax", "iframe"):
        if word == "on":
            assert not re.search(r"\son\w+=", tags)
        else:
            assert word not in tags, f"{word!r} in {tags}"


class Audit(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))


@given(st.text(max_size=400), st.sampled_from(["markdown", "html"]))
@settings(max_examples=300)
def test_any_text_stays_within_the_allow_list(text, mode):
    audit = Audit()
    audit.feed(to_html(text, mode))
    for tag, attributes in audit.found:
        assert tag in ELEMENTS | mathematics.ELEMENTS
        allowed = ATTRIBUTES["*"] | ATTRIBUTES.get(tag, {"open"} if tag == "details" else set())
        assert {name for name, _ in attributes} <= allowed


@given(st.text(alphabet="abcdefgh :;(),-#%'\"\\/.0123456789urlexpcolrfnt-sizemargbkdv@!", max_size=120))
@settings(max_examples=500)
def test_any_style_keeps_only_harmless_declarations(style):
    kept = safe_style(style)
    for declaration in (kept or "").split(";"):
        name, _, value = declaration.partition(":")
        assert not kept or name in PROPERTIES
        assert "url(" not in value and "\\" not in value and "@" not in value


def test_font_sizes_are_capped():
    assert safe_style("font-size:1e6px") == "font-size:min(1e6px, 400px)"
    assert safe_style("font-size:large") == "font-size:large"
    assert safe_style("font: bold 1000000px x") == "font:bold min(1000000px, 400px) page-sans, page-any"
    assert safe_style("font:inherit") is None


def test_font_families_become_shipped_ones():
    assert safe_style("font-family: 'Courier New', serif") == "font-family:page-mono, page-any"
    assert safe_style("font-family: Georgia, serif") == "font-family:page-serif, page-any"
    assert safe_style("font-family: Arial, serif") == "font-family:page-sans, page-any"
    assert safe_style("font:italic 12pt/1.5 times") == "font:italic min(12pt, 400px)/1.5 page-serif, page-any"


def test_a_fenced_memory_counts_as_its_content():
    assert to_html("```markdown\n# A\n```", "markdown") == to_html("# A", "markdown")
    assert "<code>" in to_html("text\n\n```\n# A\n```", "markdown")


def test_images_leave_their_description():
    assert "[a red fox]" in to_html("![a red *fox*](x.png)", "markdown")
    assert "<img" not in to_html("<img src=x.png alt='a fox'>", "html")


@pytest.mark.parametrize(
    "deep", [">" * 500 + " needle", "- " * 500 + "needle", "<div>" * 3000 + "needle", "[" * 3000 + "needle"]
)
def test_deep_nesting_loses_no_text(deep):
    assert "needle" in to_html(deep, "markdown")


def test_broken_unicode_is_repaired():
    assert clean_text("a\ud800b\x00c\r\nd\x1b") == "a\ufffdb\ufffdc\nd\ufffd"
    # A pair of surrogates that stand for one character is that character.
    assert clean_text("\ud83d\ude00") == "\N{GRINNING FACE}"
    to_html("\udfff" * 10, "markdown").encode()


@pytest.mark.parametrize(
    "empty", ["", " \n\t", "# ", "**", "<b></b>", "\u200b\u200d\ufeff", "---", "&nbsp;", "<!-- x -->"]
)
def test_what_shows_nothing_has_no_visible_text(empty):
    assert shows_text(to_html(empty, "markdown")) == (empty == "**")


def test_parsing_keeps_no_memory():
    process = psutil.Process()
    text = "# A *b*\n\n- c `d` <span style='color:red'>e</span>\n" * 20
    for _ in range(300):
        to_html(text, "markdown")
    before = process.memory_info().rss
    for _ in range(3000):
        to_html(text, "markdown")
    # A parser that forgot to free its tree cost 25 KB a memory: 75 MB here.
    assert process.memory_info().rss - before < 8 << 20
