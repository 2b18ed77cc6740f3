"""One way to open a run's directory and a Hugging Face directory."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import memocr_jax
from memocr_jax.agent.open import find, find_hf, find_run
from memocr_jax.convert import export_run
from memocr_jax.core.errors import UserError
from memocr_jax.models.qwen25_vl import abstract_model
from memocr_jax.runs.checkpoint import Meta, theme_of
from render.settings import RenderSettings


@pytest.fixture(scope="module")
def places(tiny_run, tmp_path_factory):
    """A run's directory and its export."""
    run_dir, exported = tiny_run(), tmp_path_factory.mktemp("open") / "hf"
    export_run(run_dir, exported, dtype="float32")
    return run_dir, exported


def test_a_run_and_its_export_are_the_same_model(places, tiny_mesh):
    run, hf = map(find, places)
    assert run.meta.step == 0 and hf.meta is None
    assert run.model == hf.model and run.compute_dtype == hf.compute_dtype == "float32"
    _, abstract = abstract_model(run.model, param_dtype=jnp.float32)
    ours, theirs = (dict(nnx.to_flat_state(source.load(abstract, tiny_mesh))) for source in (run, hf))
    for name, value in ours.items():
        np.testing.assert_array_equal(value[...], theirs[name][...])


def test_from_pretrained_takes_a_run_too(places):
    models = [memocr_jax.from_pretrained(place, dtype="float32") for place in places]
    arrays = [processor("one river") for _, processor in models]
    np.testing.assert_array_equal(arrays[0]["input_ids"], arrays[1]["input_ids"])
    run, hf = (memocr_jax.logits(model, **arrays[0]) for model, _ in models)
    np.testing.assert_array_equal(run, hf)


def test_a_run_that_is_named_from_its_folder_is_exported(places, tmp_path, monkeypatch):
    monkeypatch.chdir(places[0].parent)
    export_run(places[0].name, tmp_path / "hf", dtype="float32")
    name = "model.safetensors"
    assert (tmp_path / "hf" / name).read_bytes() == (places[1] / name).read_bytes()


def test_what_is_not_there(places, tmp_path):
    run_dir, exported = places
    for wrong, message in [
        (lambda: find(run_dir, revision="main"), "revision 'main' is for hub ids; .* directory of a run"),
        (lambda: find(exported, revision="main"), "revision 'main' is for hub ids"),
        (lambda: find(exported, step=1), "step 1 is for the directory of a run"),
        (lambda: find_run(run_dir, 7), r"no checkpoint of step 7; there are \[0\]"),
        (lambda: find_run(exported), "not the directory of a run"),
        (lambda: find_hf(tmp_path), r"config\.json"),
        (lambda: find("no/such/place"), "no such directory"),
    ]:
        with pytest.raises(UserError, match=message):
            wrong()


def test_the_theme_that_a_checkpoint_remembers_counts():
    render = RenderSettings(theme="small")
    assert theme_of(None, render) == theme_of(Meta(3, 3, {}), render) == render, "none remembered"
    remembered = theme_of(Meta(3, 3, {}, theme_css="h1 { color: red }"), render)
    assert (remembered.theme, remembered.theme_css) == ("small", "h1 { color: red }")
