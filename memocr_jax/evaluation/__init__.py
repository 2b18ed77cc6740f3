"""Evaluation: the same questions answered in several ways, at several budgets.

- `methods`: answers and their scores (`evaluate_examples`), without any files: training validates with it.
- `validation`: the validation of training, every few steps.
- `summary`: accuracies with confidence intervals by data set, length, method and budget.
- `journal`: the finished questions on disk, so that an interrupted evaluation can continue.
- `tables`, `plots`: the summary for people; memocr_jax/report has the page with every question.
- `density`, `lengths`, `robustness`, `case`: the paper's analyses of memories, from `memories` and `files`.
"""
