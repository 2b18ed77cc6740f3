import html
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memocr_jax.agent.answers import exact_match
from memocr_jax.agent.cloze import BLANK, make_gap_fill, visible_text
from render.markdown import to_html

MEMORY = """# Torim works as a **baker**

- Bavelo keeps an otter, see [the register](https://example.org/very/hidden/target)
- `Kirsa` lives at number 417

| name | colour |
|------|--------|
| Ruzim | amber |
"""


def draw(seed, memory=MEMORY, **kwargs):
    return make_gap_fill(memory, np.random.default_rng(seed), **kwargs)


def passage(cloze):
    return cloze.question.split("\n\n", 1)[1]


def restore(cloze):
    text = passage(cloze)
    for word in cloze.answer.split(", "):
        text = text.replace(BLANK, word, 1)
    return text


def test_visible_text_is_what_the_page_shows():
    assert visible_text(MEMORY) == (
        "Torim works as a baker Bavelo keeps an otter, see the register Kirsa lives at number 417 "
        "name colour Ruzim amber"
    )
    page = "    <style>p {color: red}</style><h1 class='x'>Big &amp; small</h1><!-- no --><p>3 < 4</p>"
    assert visible_text(page, "html") == "Big & small 3 < 4"
    assert visible_text("```markdown\n# Big\n```") == "Big", "a fence around it all is not part of the memory"


FRAGMENTS = [
    "# Heading one\n", "plain words here ", "**bold text** ", "*it alics* ", "`code span` ",
    "\n- item alpha\n", "\n```python\nprint(value)\n```\n",
    '[link words](http://target.example/deep "hover title") ', "&amp; entity ",
    "![image words](pic.png) ", '\n[ref]: http://elsewhere.example/path "ref title"\n', "&lt;shown&gt; ",
    "\n| left | right |\n|------|-------|\n| cell | other |\n", "<b>inline html</b> ",
    "<!-- hidden comment --> ", "<script>alert(secret)</script> ", "<style>color: hidden</style>",
    "<title>hidden title</title>", "\n> quoted words\n", "\n    indented code block\n",
    "~~struck text~~ ", "snake_case_name ", "_under score_ ", "http://bare.example/path ",
    "<https://auto.example/path> ", "\\*escaped\\* ", "\n---\n", "<!-- never closed ",
    "\nSetext heading\n======\n", "don't ", '<div class="hidden classname">block words</div>\n', "\n\n",
    "<svg><text>drawing words</text></svg> ", "<details><summary>summary words</summary>inside</details>",
    "日本語 テキスト ", "Ünïcödé wörds ", "<p title='hidden'>paragraph", "</p> after it ",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["markdown", "html"])
def test_every_blanked_word_is_on_the_page(mode):
    """Whatever markup a memory holds, the reader is asked only for words that the renderer draws."""
    rng = np.random.default_rng(0)
    clozes = 0
    for seed in range(1500):
        memory = "".join(rng.choice(FRAGMENTS, size=rng.integers(2, 9)))
        cloze = draw(seed, memory, memory_format=mode)
        if cloze is not None:
            clozes += 1
            drawn = html.unescape(re.sub(r"<[^>]*>", " ", to_html(memory, mode)))
            assert all(word in drawn for word in cloze.answer.split(", ")), memory
    assert clozes > 1000


def test_filling_the_blanks_gives_back_the_text():
    for seed in range(50):
        cloze = draw(seed)
        assert passage(cloze).count(BLANK) == 3
        assert restore(cloze) in visible_text(MEMORY)


def test_the_same_seed_gives_the_same_cloze_and_seeds_differ():
    clozes = {draw(seed).answer for seed in range(40)}
    assert len(clozes) > 20
    assert draw(7) == draw(7)


def test_every_usable_word_can_be_blanked_and_no_other():
    seen = {word for seed in range(400) for word in draw(seed).answer.split(", ")}
    usable = {w for w in re.findall(r"\w+", visible_text(MEMORY)) if len(w) > 2 and w != "the"}
    assert seen == usable


def test_the_answer_scores_in_any_usual_writing():
    cloze = draw(3)
    words = cloze.answer.split(", ")
    assert exact_match(" ".join(words).upper(), [cloze.answer]) == 1.0
    assert exact_match("; ".join(words), [cloze.answer]) == 1.0
    assert exact_match(", ".join(reversed(words)), [cloze.answer]) == 0.0


def test_window_length_and_number_of_blanks():
    memory = " ".join(f"word{n:03d}" for n in range(200))
    starts = set()
    for seed in range(100):
        cloze = draw(seed, memory, window_chars=100, blanks=5)
        text = restore(cloze)
        assert passage(cloze).count(BLANK) == 5
        # Words of 7 letters and a space: at most 100 characters hold 12 of them (12 * 8 - 1 = 95).
        assert len(text) == 95
        starts.add(text.split()[0])
    assert len(starts) > 50, "the window must move over the whole memory"


@pytest.mark.parametrize(
    "memory", ["", " \n\t", "# ", "an ox is up", "one two", "the the the the", "<br><hr>", "...!"]
)
def test_too_few_usable_words_give_none(memory):
    assert draw(0, memory) is None


def test_words_that_can_be_written_in_two_ways_are_left_alone():
    seen = {
        word
        for seed in range(100)
        for word in draw(seed, "don't well-known 3.14 alpha beta gamma").answer.split(", ")
    }
    assert seen == {"alpha", "beta", "gamma"}


@settings(max_examples=200)
@given(st.text(max_size=400), st.integers(0, 2**32 - 1))
def test_any_text_gives_a_sound_cloze_or_none(memory, seed):
    cloze = draw(seed, memory, window_chars=80)
    if cloze is not None:
        assert len(cloze.answer.split(", ")) == 3
        assert all(len(word) > 2 and word.isalnum() for word in cloze.answer.split(", "))
        assert exact_match(cloze.answer, [cloze.answer]) == 1.0
