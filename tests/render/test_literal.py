"""Markdown loses no text: the words of a memory are the words of its page, as Chromium has them."""

import re
import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from render import RenderSettings
from render.chromium import Browser, find_chromium
from render.markdown import to_html
from render.sheet import Sheet


def words(text):
    # The browser writes the letters of formulas as mathematical italics.
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text))


@pytest.fixture(scope="module")
def show():
    """The text of a page and of its regions, from a browser."""
    browser = Browser(find_chromium())
    sheet = Sheet(browser, RenderSettings())

    def shown(memory):
        fragment = to_html(memory, "markdown")
        [page] = sheet.lay_out([fragment], 728, time.monotonic() + 20)
        return sheet._evaluate("sheet.innerText", 20), [region[-1] for region in page["regions"]]

    yield shown
    browser.close()


# A piece of Markdown, and what of it a page shows where that is not all of it.
PIECES = [
    ("Every page needs a <title> element.", None),
    ("<title>\nstands at the start", None),
    ("<script>alert</script> and <style>p</style>", None),
    ("use List<String>, Map<K, V> and Set<A>", None),
    ("<draft-ietf-quic-transport> is a name", None),
    ("if a<b and c>d then x < y", None),
    ("for all <i> in <s or t>", None),
    ("<!DOCTYPE html> <?php echo 1 ?> <![CDATA[data]]>", None),
    ("<!-- this comment has no end", None),
    ("a <!-- seen --> b", "a b"),
    ("5~7 and 100~200", None),
    ("~one~ and ~~two~~ and ~three", None),
    ("<details><summary>more</summary>hidden facts</details>", "more hidden facts"),
    ("<details>\n<summary>more</summary>\n\nhidden *facts*\n\n</details>", "more hidden facts"),
    ("<b>bold</b> <span style='color:red'>red</span> <br> <font size=5>large</font>", "bold red large"),
    ("<span style='display:none'>not hidden</span> <p style='opacity:0'>seen</p>", "not hidden seen"),
    ("<span style='color:red'>cut off", "cut off"),
    ("<div>in a block\n**as it is**\n</div>", "in a block as it is"),
    ("<table><tr><td>cell</table>", "cell"),
    ("<ruby>word<rp>(</rp><rt>reading</rt><rp>)</rp></ruby>", "word reading"),
    ("[1]: Smith 2003", None),
    ("[note]: <a b> 'title'", None),
    ("> [quoted]: Miller", None),
    ("|name|year|\n|-|-|\n|Ann|1901|London|\n|Bob|", None),
    ("> |name|\n> |-|\n> |Ann|1901|", None),
    ("call rows[i](key) twice", None),
    ("``` The answer is 42\nopen", None),
    ("~~~ one two\nthree\n~~~", None),
    ("costs $5 and $10, or $7 (or 8$)", None),
    ("from $5-$10 to US$6", None),
    (r"unknown $\nosuch{x}$ stays", None),
    ("**重要。**这是**「中」**文", None),
    ("# heading *one*\n\n## two", None),
    ("- item\n  - nested\n\n      code", None),
    ("snake_case and `a<b>` and \\*stars\\*", None),
    ("![a fox](fox.png) [site](https://example.org/x)", "a fox site"),
    ("</b> </title> </div> </nosuch>", None),
    ("<b/> <span/> <p/> <x/>", "b span p x"),
    ("&lt;title&gt; &amp; &nosuch;", "title nosuch"),
    ("<a href='x' onclick='y'>link</a>", "link"),
    ("<svg><text>drawn</text></svg> <math>x</math>", None),
    ("<select><option>one</select> <textarea>two", None),
]


@pytest.mark.parametrize(("memory", "expected"), PIECES)
def test_a_page_has_the_words_of_its_memory(show, memory, expected):
    text, regions = show(memory)
    assert Counter(words(text)) == Counter(words(memory if expected is None else expected))
    assert Counter(words(" ".join(regions))) == Counter(words(text))


@given(
    st.lists(st.sampled_from(PIECES), min_size=2, max_size=6), st.sampled_from(["\n\n", "\n\n- ", "\n\n> "])
)
@settings(max_examples=150, deadline=None)
def test_no_word_is_lost_among_others(show, pieces, between):
    # Behind a piece that opens a block without closing it, markup may be text: no word may go, some may come.
    memory = between.join(piece for piece, _ in pieces)
    assume(memory.count("<!--") < 2)  # the end of one comment would be the end of both
    text, regions = show(memory)
    expected = Counter(word for piece, shown in pieces for word in words(piece if shown is None else shown))
    lost = expected - Counter(words(text))
    assert not lost, (lost, text)
    assert not Counter(words(" ".join(regions))) - Counter(words(text))


# No tag is named so, and without `(`, `&` and `.` no link, entity or list takes a letter.
@given(st.text(alphabet="xz12<>/!-?~[]:|`$\\*_^{}#;=\"' \n", max_size=60))
@settings(max_examples=400, deadline=None)
def test_no_letter_is_lost_among_random_punctuation(show, memory):
    assume(not re.search(r"<!--|```|~~~", memory))  # comments and the language of code are not shown
    text, _ = show(memory)
    assert Counter("".join(words(text))) == Counter("".join(words(memory)))


@pytest.mark.parametrize(
    ("memory", "numbers"),
    [
        ("1. a\n2. b\n3. c", [1, 2, 3]),
        ("3. a\n1. b\n7. c\n8. d", [3, 1, 7, 8]),
        ("1. a\n\n5. b\n\n6. c", [1, 5, 6]),
        ("1. a\n1. b\n1. c", [1, 2, 3]),
        ("1) a\n4) b", [1, 4]),
        ("2. a\n2. b\n4. c", [2, 2, 4]),
        ("1. a\n2) b\n3) c", [1, 2, 3]),
        ("1. a\n   1. x\n   4. y\n2. b\n   1. z", [1, 1, 4, 2, 1]),
        ("> 2. a\n> 9. b", [2, 9]),
    ],
)
def test_a_list_has_the_numbers_that_were_written(memory, numbers):
    found, counts = [], []
    for tag, start in re.findall(r'<(ol|li|/ol)(?: start="(\d+)")?>', to_html(memory, "markdown")):
        if tag == "ol":
            counts.append(int(start or 1))
        elif tag == "/ol":
            counts.pop()
        else:
            found.append(counts[-1])
            counts[-1] += 1
    assert found == numbers


@pytest.mark.parametrize(
    "memory",
    ["1. a\n\nborn in\n1986. Then", "```\n1. a\n5. b\n```", "Founded in\n1986. Closed in\n2001. Sold."],
)
def test_numbers_elsewhere_are_not_touched(memory):
    assert ")" not in to_html(memory, "markdown")


def test_a_long_row_does_not_change_a_table_in_code():
    code = "```\n|a|b|\n|-|-|\n|1|2|3|\n```"
    assert "|a|b|\n|-|-|\n|1|2|3|" in to_html(code, "markdown")


@pytest.mark.parametrize(
    "hostile", ["<!--" * 20_000, "<a " * 30_000, "<a x='" * 15_000, "<b>" * 30_000, "|-" * 30_000]
)
def test_hostile_text_takes_linear_time(hostile):
    started = time.process_time()
    to_html(hostile, "markdown")
    assert time.process_time() - started < 5
