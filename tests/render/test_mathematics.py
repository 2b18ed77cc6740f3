"""Mathematics is drawn; what is none, or does not parse, stays the text it is."""

import time

import numpy as np
import pytest

from render.markdown import to_html


def html(text):
    return to_html(text, "markdown")


@pytest.mark.parametrize(
    ("text", "mathml"),
    [
        ("$E = mc^2$", "<msup><mi>c</mi><mn>2</mn></msup>"),
        ("so $$\\frac{a}{b}$$ is", '<math display="block"><mfrac><mi>a</mi><mi>b</mi></mfrac></math>'),
        (r"\(a+b\)", "<mo>+</mo>"),
        (r"\[\sqrt{x}\]", "<msqrt><mi>x</mi></msqrt>"),
        (r"half: \frac{a}{b}", "<mfrac><mi>a</mi><mi>b</mi></mfrac>"),
        (r"\frac{1}{\sqrt{2\pi}} and \sqrt[3]{x}", "<mroot><mi>x</mi><mn>3</mn></mroot>"),
        ("```math\nx^2\n```", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("$x_{in}$", "<msub>"),
        ("$PV = nRT$", "<mi>R</mi>"),
        (r"$\text{if a < b}$", "if&nbsp;a&nbsp;&lt;&nbsp;b"),
        ("**速度。**$v$", "<mi>v</mi>"),
    ],
)
def test_formulas_become_mathml(text, mathml):
    for _ in range(20):  # the parser writes attributes in any order
        assert mathml in html(text)


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "from $5-$10 to US$6,000",
        "costs $5 (or 4$)",
        "$5$ or $-10$",
        "a $20 note and B's $ sign",
        r"$\nosuch{x}$",
        r"\[\nosuch\]",
        "$the price of tea$",
        r"\frac{a}",
        "$a\n\nb$",
    ],
)
def test_other_text_stays(text):
    shown = html(text)
    assert "<math" not in shown
    assert "".join(shown.replace("<p>", "").replace("</p>", "").split()) == "".join(text.split())


def test_code_is_no_mathematics():
    assert "<math" not in html("`$x^2$` and `\\frac{a}{b}`\n\n    \\frac{a}{b}")


@pytest.mark.parametrize(
    ("hostile", "gone"),
    [
        ("<math><mi xlink:href='http://127.0.0.1/' href='x'>x</mi></math>", "href"),
        ("<math><mstyle scriptlevel='-20'><mi mathsize='900px'>x</mi></mstyle></math>", "900"),
        ("<math><mspace width='-500em'/><mi>x</mi></math>", "500"),
        ("<math><mo minsize='1000em'>(</mo></math>", "1000"),
        ("<math><annotation-xml encoding='text/html'><img src=x></annotation-xml></math>", "img"),
        (
            "<math><mtext><table><mglyph><style><img src=x></style></mglyph></table></mtext></math>",
            "src",
        ),
    ],
)
def test_mathml_of_a_memory_is_sanitised(hostile, gone):
    assert gone not in to_html(hostile, "html")


def test_a_formula_is_drawn_with_its_own_font(pool):
    page, letters = pool.render(["$\\int_0^1 x^2$", "*x*"])
    assert page.status == "OK" and page.regions[0].text.replace(" ", "") == "∫01x2"
    assert page.pixels.shape != letters.pixels.shape
    assert np.array_equal(page.pixels, pool.render(["\\(\\int_0^1 x^2\\)"])[0].pixels)


@pytest.mark.parametrize(
    "hostile", ["$x" * 40_000, "\\frac{" * 15_000, "$\\frac{" * 5_000 + "}$", "\\sqrt[" * 15_000]
)
def test_hostile_text_takes_linear_time(hostile):
    started = time.process_time()
    html(hostile)
    assert time.process_time() - started < 5
