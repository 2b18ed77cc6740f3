"""What a run insists on when it continues. (That nothing else changes is tests/test_resume.py's.)"""

import dataclasses

import pytest

from memocr_jax.core.errors import UserError
from memocr_jax.rl.resume import meta_of, order_of, remembered_theme, require_same_run
from memocr_jax.rl.update import TrainState
from render.theme import theme_css


@pytest.fixture
def meta(tiny_config, small_model):
    """Of a checkpoint of this configuration over ten questions, with adapters."""
    render = remembered_theme(tiny_config, None, pytest.fail)
    state = TrainState(None, None, step=3, updates=5, skipped_in_row=2)
    return meta_of(state, small_model.config, "base", order_of(tiny_config, 10), render)


def test_a_run_goes_on_with_the_theme_it_began_with(tiny_config, meta):
    assert (meta.step, meta.updates, meta.skipped_in_row) == (3, 5, 2)
    assert meta.theme_css == theme_css(tiny_config.render)
    assert remembered_theme(tiny_config, meta, pytest.fail).theme_css == meta.theme_css
    said = []
    old = dataclasses.replace(meta, theme_css="body { color: red }")
    assert remembered_theme(tiny_config, old, said.append).theme_css == "body { color: red }"
    assert len(said) == 1 and "render.theme" in said[0]


def test_another_model_base_or_order_of_questions_is_refused(tiny_config, small_model, meta):
    model, order = small_model.config, order_of(tiny_config, 10)
    require_same_run(tiny_config, meta, model, "base", order)
    text = dataclasses.replace(model.text, intermediate_size=116)
    with pytest.raises(UserError, match="intermediate_size is 112 there and 116"):
        require_same_run(tiny_config, meta, dataclasses.replace(model, text=text), "base", order)
    with pytest.raises(UserError, match="adapters were trained on other weights"):
        require_same_run(tiny_config, meta, model, "another", order)
    with pytest.raises(UserError, match="number of questions 10, now it is 11, which changes the order"):
        require_same_run(tiny_config, meta, model, "base", order_of(tiny_config, 11))
