"""Settings name what is wrong; importing them costs nothing."""

import subprocess
import sys

import pytest

from render import RenderError, RenderSettings


@pytest.mark.parametrize(
    "wrong,named",
    [
        ({"width_px": 0}, "width_px is 0"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"scale": 40.0}, "scale is 40.0"),
        ({"margin_px": -1}, "margin_px is -1"),
        ({"margin_px": 400}, "margin_px is 400"),
        ({"width_px": 5000}, "width_px is 5000; use 28 or more and at most 4096"),
        ({"max_height_px": 1 << 20}, "max_height_px is 1048576"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0"),
        ({"max_memory_mb": 10}, "max_memory_mb is 10"),
        ({"theme": ""}, "theme is empty"),
    ],
)
def test_an_impossible_value_is_named(wrong, named):
    with pytest.raises(RenderError, match=named):
        RenderSettings(**wrong)


def test_settings_import_nothing_heavy():
    script = (
        "import sys; from render.settings import RenderSettings; RenderSettings();"
        "print([m for m in ('numpy', 'PIL', 'playwright', 'nh3', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_renderer_knows_no_jax_and_starts_no_playwright():
    script = (
        "import sys; from render import RenderPool, open_renderer, RenderSettings;"
        "import render.server, render.views, render.client;"
        "print([m for m in ('jax', 'playwright', 'memocr_jax', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
