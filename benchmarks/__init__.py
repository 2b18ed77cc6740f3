"""Benchmarks of memocr_jax: `python -m benchmarks.NAME`, from the root of the repository."""
