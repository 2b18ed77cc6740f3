"""Fixtures of all tests. JAX sees four CPU devices, so that sharding is real in every test that wants it."""

from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)

ROOT = Path(__file__).resolve().parents[1]


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
    from memocr_jax.sharding import make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])
