"""Supervised fine-tuning: lessons of the synthetic world, conversations from files, the update.

`lessons` makes what a cold start is taught with, `conversations` reads a user's own examples, `start` gives
fresh parameters the warm-up's starting point, `update` learns. The command is `memocr_jax.warmup`.
"""
