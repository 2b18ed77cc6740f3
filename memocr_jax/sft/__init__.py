"""Supervised fine-tuning: lessons of the synthetic world, conversations from files, the update.

`lessons` makes the lessons of a warm-up from nothing, and `conversations` reads a user's own examples.
`stages` says which update takes which lessons, and `batches` prepares them. `prior` makes the initial
weights, and `update` trains. The command is `memocr_jax.warmup`.
"""
