"""The sizes that programs are compiled for: what is warmed up holds everything that can come."""

from __future__ import annotations

import numpy as np
import pytest

from memocr_jax.agent.agent import most_view_windows
from memocr_jax.config import EngineConfig
from memocr_jax.engine import PromptLimits
from memocr_jax.engine.sizes import plan
from memocr_jax.models.config import VisionConfig
from memocr_jax.models.images import most_windows
from render.settings import TOKEN_PX, RenderSettings
from render.views import token_grid


@pytest.mark.parametrize("budget", [1024, 512, 256, 128, 64, 32, 16, 8])
@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_the_view_of_every_page_fits_the_program_that_was_warmed_up(budget, multiple, small_model):
    page, vision, config = RenderSettings(), VisionConfig(), EngineConfig(window_multiple=multiple)
    limits = PromptLimits("views", 1, 64 + budget, 16, 8, windows=most_view_windows(page, budget, vision))
    kind, _ = plan(limits, small_model.config, config, 1, 1.0)
    for height in range(TOKEN_PX, page.max_height_px + TOKEN_PX, TOKEN_PX):
        rows, columns = token_grid(height, page.width_px, budget)
        view = np.zeros((rows * TOKEN_PX, columns * TOKEN_PX, 3), np.uint8)
        # At budget 512 and multiples of 4, 212 of 293 heights asked for 44 or 48 windows; 42 were warmed up.
        assert most_windows([view], vision, multiple) <= kind.windows, f"{height} px high"
