"""Fixtures of all tests. JAX sees four CPU devices, so that sharding is real in every test that wants it."""

import os
import tempfile
from pathlib import Path
from typing import Any, Self

# Compiling takes most of the time of these tests, and a third of it without optimisation. Read by XLA once,
# when its backend starts.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# A program that two tests, two workers or two commands need is compiled once. Kept for this run
# of the tests alone: workers and commands find it in their environment, and who made it removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="memocr-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import jaxtyping
import pytest
from beartype import BeartypeConf, FrozenDict, beartype

# An int may stand for a float (PEP 484). beartype refuses Self on methods that a hook decorates one by one.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))
# In these modules every annotation, of shapes and of types, is checked at each call in the processes of the
# tests (not in the commands that they start). Elsewhere some tests still pass numpy arrays, or stand-ins.
CHECKED = [
    "memocr_jax.core.metrics",
    "memocr_jax.core.rng",
    "memocr_jax.engine.groups",
    "memocr_jax.engine.pool",
    "memocr_jax.engine.sizes",
    "memocr_jax.models.cache",
    "memocr_jax.models.lora",
    "memocr_jax.models.packing",
    "memocr_jax.rl.advantages",
    "memocr_jax.rl.loss",
    "memocr_jax.rl.optimizer",
    "memocr_jax.rl.rewards",
    "memocr_jax.rl.step",
]
jaxtyping.install_import_hook(CHECKED, f"{__name__}.checked")

jax.config.update("jax_num_cpu_devices", 4)

# No test depends on how fast the machine is.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ["tests.references"]


def pytest_collection_modifyitems(items):
    """Tests of whole commands come first: with several workers, what takes long must not start last."""
    items.sort(key=lambda item: item.path.parent != ROOT / "tests")


@pytest.fixture(scope="module", autouse=True)
def programs_let_go():
    """A process that kept the programs of all tests ran out of memory mappings; what recurs is cached."""
    from memocr_jax.runs.compiled import free_programs

    yield
    free_programs()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real data and the real tokenizer, next to the repository; tests skip without it."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder.name}/data is not next to the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_config():
    """configs/tiny.yaml with paths that work from any directory."""
    import dataclasses

    from memocr_jax.config import load_config

    config = load_config(ROOT / "configs" / "tiny.yaml")
    model = dataclasses.replace(config.model, path=str(ROOT / config.model.path))
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="session")
def tiny_mesh():
    """A mesh of one device."""
    from memocr_jax.config import MeshConfig
    from memocr_jax.core.sharding import make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tiny_mesh, tmp_path_factory):
    """Makes run directories of the tiny model with random weights (step 0), as `convert import` does.

    `tiny_run(agent={"budget_tokens": 16})` changes fields of configs/tiny.yaml by section; `wide` makes the
    weights four times as large as usual, so that what is sampled depends on the prompt.
    """
    import dataclasses

    import jax.numpy as jnp

    from memocr_jax.core.sharding import param_shardings
    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.models.qwen25_vl import abstract_model, init_params
    from memocr_jax.rl.resume import save_run

    def make(wide: bool = False, **changes) -> Path:
        sections = {
            name: dataclasses.replace(getattr(tiny_config, name), **changes[name]) for name in changes
        }
        config = dataclasses.replace(tiny_config, **sections)
        model = Qwen25VLConfig.from_file(config.model.path)
        options = {"dtype": jnp.float32, "mesh": tiny_mesh}
        _, abstract = abstract_model(model, **options)
        params = init_params(model, 0, param_shardings(abstract, tiny_mesh), **options)
        if wide:
            params = jax.tree.map(lambda x: x * (4 if x.ndim > 1 else 1), params)
        run_dir = tmp_path_factory.mktemp("runs") / "tiny"
        save_run(run_dir, config, model, params)
        return run_dir

    return make


@pytest.fixture(scope="session")
def small_model():
    """A Qwen2.5-VL with a vocabulary of 211 whose weights are wide enough that context matters.

    `.on(mesh)` gives its graph and parameters; ids 200..203 are the control tokens, 7 ends a completion.
    """
    import dataclasses
    from types import SimpleNamespace

    import jax.numpy as jnp

    from memocr_jax.core.sharding import param_shardings
    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.models.qwen25_vl import abstract_model, init_params

    config = Qwen25VLConfig.from_file(ROOT / "configs" / "models" / "tiny")
    config = dataclasses.replace(
        config,
        text=dataclasses.replace(
            config.text, vocab_size=212, num_attention_heads=6, num_key_value_heads=2, mrope_section=(1, 1, 2)
        ),
        vision=dataclasses.replace(config.vision, depth=2, fullatt_block_indexes=(1,)),
        image_token_id=200,
        video_token_id=201,
        vision_start_token_id=202,
        vision_end_token_id=203,
    )

    def on(mesh):
        options = {"dtype": jnp.float32, "mesh": mesh}
        graphdef, abstract = abstract_model(config, **options)
        params = init_params(config, 0, param_shardings(abstract, mesh), **options)
        # Four times the usual weights: with those of the usual size every context looks the same; with ten
        # times, attention saturates and gradients are ill-conditioned.
        return graphdef, jax.tree.map(lambda x: x * (4 if x.ndim > 1 else 1), params)

    return SimpleNamespace(config=config, on=on, eos_ids=(7,))


@pytest.fixture(scope="module")
def browser():
    """A Chromium that tests drive themselves, to look at the reports that the package writes."""
    from playwright.sync_api import sync_playwright

    from render.chromium import find_chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file offline; what the console says, and requests that fail, are the page's `complaints`."""

    def open_(path: Path, **options):
        page = browser.new_page(viewport={"width": 1300, "height": 900}, **options)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("requestfailed", lambda request: page.complaints.append(request.url[:80]))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in browser.contexts:
        context.close()
