"""Evaluation: the same questions answered in several ways, at several budgets.

- `methods`: answers and their scores (`evaluate_examples`), without any files: training validates with it.
- `validation`: the validation of training, every few steps.
- `work`: the questions of each process; `weights`: the weights that are evaluated.
- `summary`: accuracies with confidence intervals by data set, length, method and budget.
- `journal`: the finished questions on disk, so that an interrupted evaluation can continue.
- `outputs`: writes the results; `tables`, `plots`: the summary for people.
  (The page with every question is in `memocr_jax.report`.)
- `density`, `lengths`, `robustness`, `case`: the paper's analyses of memories, from `memories` and `files`.
"""
