"""The budget is a hard cap, for every size and every budget; the model's processor changes nothing."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from render.views import MAX_RATIO, MAX_STRETCH, degrade, fit, image_tokens, token_grid

SIDES = st.integers(1, 5000)
BUDGETS = st.integers(1, 4096)


def blank(height, width):
    # One zero-strided row and column: as large as asked for, without the memory.
    return np.broadcast_to(np.full(3, 255, np.uint8), (height, width, 3))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(SIDES, SIDES, BUDGETS)
@settings(max_examples=1500)
@example(1, 5000, 1)
@example(5000, 1, 4096)
@example(5000, 5000, 4096)
@example(5000, 27, 199)
def test_grid_stays_within_budget_and_page(height, width, budget):
    rows, columns = token_grid(height, width, budget)
    assert 1 <= rows * columns <= budget, "the budget is a hard cap"
    assert rows <= math.ceil(height / 28) and columns <= math.ceil(width / 28), "a view never enlarges"
    assert max(rows, columns) <= MAX_RATIO * min(rows, columns), "the image processor would refuse it"


@given(st.integers(1, 1200), st.integers(1, 1200), st.integers(1, 200))
@settings(max_examples=200)
def test_grid_shows_the_page_as_large_as_any_grid_could(height, width, budget):
    def scale(rows, columns):
        return min(rows * 28 / height, columns * 28 / width, 1.0)

    allowed = [
        (rows, columns)
        for rows in range(1, min(budget, math.ceil(height / 28)) + 1)
        for columns in range(1, min(budget // rows, math.ceil(width / 28)) + 1)
    ]
    best = max(scale(*grid) for grid in allowed)
    chosen = token_grid(height, width, budget)
    assert scale(*chosen) == best
    assert math.prod(chosen) == min(math.prod(grid) for grid in allowed if scale(*grid) == best)


@given(SIDES, SIDES, BUDGETS)
@settings(max_examples=60)
@example(1, 1, 1)
@example(5000, 1, 4096)
@example(5000, 5000, 1)
def test_fit_any_page_any_budget(height, width, budget):
    view = fit(blank(height, width), budget)
    assert view.dtype == np.uint8 and view.shape[2] == 3
    assert view.shape[0] % 28 == 0 and view.shape[1] % 28 == 0
    assert 1 <= image_tokens(view) <= budget
    assert (view == 255).all(), "resizing and padding a white page leave it white"


@given(SIDES, SIDES, BUDGETS, st.integers(1, 8), st.sampled_from(["shrink", "blur"]))
@settings(max_examples=60)
def test_degrade_any_page_any_budget(height, width, budget, factor, mode):
    page = blank(height, width)
    full, low = image_tokens(fit(page, budget)), image_tokens(degrade(page, budget, factor, mode))
    if mode == "shrink":
        assert 1 <= low <= max(1, full // factor**2)
    else:
        assert low == full


@given(st.integers(28, 900), st.integers(28, 900), BUDGETS)
@settings(max_examples=150)
def test_aspect_is_kept_or_padded(height, width, budget):
    # A black page: what is black in the view is the page, what is white would be padding; the padding takes
    # the colour of the page's last pixel, so that one is made white.
    page = np.zeros((height, width, 3), np.uint8)
    page[-1, -1] = 255
    view = fit(page, budget)
    dark = view[..., 0] < 128
    content_height, content_width = dark.any(axis=1).sum(), dark.any(axis=0).sum()
    stretch = (content_width / content_height) / (width / height)
    # Rounding to whole px moves a short side by up to one px.
    slack = 1 + 2 / min(content_height, content_width)
    assert 1 / (MAX_STRETCH * slack) <= stretch <= MAX_STRETCH * slack


def test_published_budgets_on_a_typical_page():
    # 784 x 504 px is 28 x 18 = 504 tokens. At 64 the scale is sqrt(64 / 504) = 0.356: 10 columns of the 28
    # give 0.357, and 6 rows of the 18 give 0.333: 60 tokens; no grid of at most 64 has a larger minimum.
    page = noise(504, 784)
    assert fit(page, 512) is page, "a page that fits is handed on untouched"
    assert fit(page, 64).shape == (168, 280, 3)
    assert image_tokens(fit(page, 512)) == 504
    # 4x per side: 504 // 16 = 31 tokens allowed, 4 x 7 = 28 used (784 / 4 = 196 px wide).
    assert degrade(page, 512, 4).shape == (112, 196, 3)
    assert [image_tokens(fit(page, b)) for b in (8, 4, 2, 1)] == [8, 4, 2, 1]


def test_a_small_page_is_padded_not_enlarged():
    page = noise(30, 50)
    view = fit(page, 512)
    assert view.shape == (56, 56, 3)
    np.testing.assert_array_equal(view[:30, :50], page)
    assert (view[30:] == page[-1, -1]).all() and (view[:, 50:] == page[-1, -1]).all()


def test_blur_loses_detail_and_shrink_loses_tokens():
    page = np.zeros((280, 280, 3), np.uint8)
    page[:, ::2] = 255  # the finest stripes there are: gone at a quarter of the resolution
    blurred = degrade(page, 512, 4, "blur")
    assert blurred.shape == page.shape
    assert blurred[100:180, 100:180].std() < 10 < page.std()


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="budget_tokens is 0"):
        fit(noise(28, 28), 0)
    with pytest.raises(ValueError, match="u8"):
        fit(np.zeros((28, 28), np.uint8), 1)
    with pytest.raises(ValueError, match="30 x 28"):
        image_tokens(noise(30, 28))
    with pytest.raises(ValueError, match="factor is 0"):
        degrade(noise(28, 28), 4, 0)
    with pytest.raises(ValueError, match="'sharpen'"):
        degrade(noise(28, 28), 4, 4, "sharpen")


@pytest.mark.parametrize(
    "height,width,budget", [(504, 784, 512), (504, 784, 1), (2000, 300, 37), (1, 5000, 64)]
)
def test_the_models_processor_changes_nothing(height, width, budget):
    from transformers import Qwen2VLImageProcessor

    view = fit(noise(height, width), budget)
    kind = {"min_pixels": 784, "max_pixels": 784 * 16384}
    processor = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, **kind)
    resized = processor(images=[view], return_tensors="np")
    kept = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, do_resize=False, **kind)(
        images=[view], return_tensors="np"
    )
    rows, columns = view.shape[0] // 14, view.shape[1] // 14
    assert resized["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert rows * columns // 4 == image_tokens(view)
    np.testing.assert_array_equal(resized["pixel_values"], kept["pixel_values"])
