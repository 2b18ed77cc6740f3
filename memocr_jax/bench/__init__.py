"""Benchmarks: `python -m memocr_jax.bench NAME`."""
