# The trainer with Chromium. Pages are drawn with fonts that come with the Python packages (DejaVu and Noto), on
# every machine the same; the system needs none.
#
#   docker build -t memocr .                              on a CPU; for an accelerator add --build-arg EXTRA=cuda (or tpu),
#                                                         for buckets gcs or s3, as EXTRA=tpu,gcs
#   docker run --rm -v "$PWD/runs:/memocr/runs" memocr --config configs/tiny.yaml
#
# With GPUs add `--gpus all` (NVIDIA's container toolkit must be there), and `--shm-size 1g` for many pages.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install -y --no-install-recommends chromium-headless-shell \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /memocr
COPY setup.py pyproject.toml README.md LICENSE ./
COPY memocr_jax memocr_jax
COPY render render
ARG EXTRA=""
RUN pip install --no-cache-dir --no-compile -e ".${EXTRA:+[$EXTRA]}"
COPY configs configs

ENTRYPOINT ["python", "-m", "memocr_jax.train"]
CMD ["--config", "configs/tiny.yaml"]
