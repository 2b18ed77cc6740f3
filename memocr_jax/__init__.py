"""MemOCR (arXiv 2601.21468) in JAX."""
