"""The theme of the nano model: words in whole visual tokens, and a heading that is body text at a quarter."""

import numpy as np
import pytest

from render import RenderPool, RenderSettings
from render.views import fit

PAGE = "# Abel bell\n\n Dora coat\n\n Finn drum\n\n Gwen flag\n\n Hugo kite"


@pytest.fixture(scope="module")
def pages():
    settings = RenderSettings(theme="nano", width_px=112, margin_px=0, shrink=False, workers=1, cache_mb=0)
    with RenderPool(settings) as pool:
        return [
            page.pixels
            for page in pool.render([PAGE, " Abel bell", "# Abel bell\n\n# Dora coat\n\n# Finn drum"])
        ]


def test_five_facts_fill_the_page_and_each_word_its_token(pages):
    page = pages[0]
    assert page.shape == (224, 112, 3)
    cells = page.reshape(8, 28, 4, 28, 3).min(axis=(1, 3, 4)) < 128
    assert cells[:4].all(), "four rows of heading"
    np.testing.assert_array_equal(cells[4:], [[True, False, True, False]] * 4)
    ink = page.reshape(8, 2, 14, 112, 3).min(axis=(2, 3, 4)) < 128
    assert ink[4:, 0].all() and not ink[4:, 1].any(), "text in the upper patches, gaps in the lower"


def test_a_heading_at_a_quarter_is_as_large_as_body_text(pages):
    heading, body = fit(pages[0], 2), pages[1]
    assert heading.shape == (56, 28, 3)
    for word, column in ((0, 0), (1, 56)):
        large = heading[14 * word : 14 * word + 14, :28].min(axis=-1) < 160
        small = body[:14, column : column + 28].min(axis=-1) < 160
        for axis in (0, 1):
            ends = [np.flatnonzero(ink.any(axis=axis))[[0, -1]] for ink in (large, small)]
            assert np.abs(ends[0] - ends[1]).max() <= 3


def test_making_everything_a_heading_makes_all_of_it_smaller(pages):
    assert pages[2].shape == (336, 112, 3)
    assert fit(pages[2], 32).shape[1] < 112


def test_facts_of_three_words_have_a_token_for_each_on_pages_of_one_height():
    settings = RenderSettings(
        theme="nano_tall", width_px=112, margin_px=0, shrink=False, workers=1, cache_mb=0
    )
    body = "\n\n".join([" Dora toy coat", " Finn pet duck"] * 4)
    with RenderPool(settings) as pool:
        tall, eight, *rest = (p.pixels for p in pool.render(["# Abel pet toad\n\n" + body, body, " Abel"]))
    assert tall.shape == eight.shape == rest[0].shape == (448, 112, 3)

    def cells(page):
        return page.reshape(16, 28, 4, 28, 3).min(axis=(1, 3, 4)) < 128

    np.testing.assert_array_equal(cells(eight)[:8], [[True, True, True, False]] * 8)
    assert not cells(eight)[8:].any()
    # The heading's three words have a line each, and at a quarter a token row for two of them.
    np.testing.assert_array_equal(cells(tall)[:6, :3], [[True] * 3] * 6)
    np.testing.assert_array_equal(cells(tall)[6:14], [[True, True, True, False]] * 8)
    assert fit(tall, 64).shape == tall.shape and fit(tall, 4).shape == (112, 28, 3)
