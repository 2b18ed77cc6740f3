"""What must be the same when a run continues; tests/test_resume.py tests that nothing else changes."""

import dataclasses

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.rl.resume import meta_of, remembered_theme, require_same_run
from memocr_jax.rl.update import TrainState
from render.theme import remembered


@pytest.fixture
def meta(tiny_config, small_model):
    """The description in a checkpoint of this configuration, with adapters."""
    render = remembered_theme(tiny_config, None, pytest.fail)
    state = TrainState(None, None, step=3, updates=5, skipped_in_row=2)
    return meta_of(state, small_model.config, "base", {"next_step": 4}, render)


def test_a_run_goes_on_with_the_theme_it_began_with(tiny_config, meta):
    assert (meta.step, meta.updates, meta.skipped_in_row) == (3, 5, 2)
    assert meta.theme_css == remembered(tiny_config.render), "the theme, and the fonts it is drawn with"
    assert remembered_theme(tiny_config, meta, pytest.fail).theme_css == meta.theme_css
    said = []
    old = dataclasses.replace(meta, theme_css="body { color: red }")
    assert remembered_theme(tiny_config, old, said.append).theme_css == "body { color: red }"
    assert len(said) == 1 and "render.theme" in said[0]


def test_another_model_or_base_is_refused(tiny_config, small_model, meta):
    model = small_model.config
    require_same_run(tiny_config, meta, model, "base")
    text = dataclasses.replace(model.text, intermediate_size=116)
    with pytest.raises(UserError, match="intermediate_size is 112 there and 116"):
        require_same_run(tiny_config, meta, dataclasses.replace(model, text=text), "base")
    with pytest.raises(UserError, match="adapters were trained on other weights"):
        require_same_run(tiny_config, meta, model, "another")
