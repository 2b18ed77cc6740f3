"""Supervised fine-tuning: lessons of the synthetic world, conversations from files, the update.

`lessons` makes what a cold start is taught with, `conversations` reads a user's own examples, `stages` says
which update takes what and `batches` prepares it, `prior` gives fresh parameters their start, `update`
learns. The command is `memocr_jax.warmup`.
"""
