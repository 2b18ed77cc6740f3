"""Evaluation: the same questions answered in several ways, at several budgets.

- `methods`: answering, scored (`evaluate_examples`); pure of files, so training can validate with it.
- `validation`: what training asks for every few steps.
- `summary`: accuracies with confidence intervals by data set, length, method and budget.
- `journal`: what is finished, on disk, so that an interrupted evaluation goes on.
- `tables`, `plots`: the summary for people; memocr_jax/report has the page with every question.
- `density`, `lengths`, `robustness`, `case`: the paper's analyses of memories, from `memories` and `files`.
"""
