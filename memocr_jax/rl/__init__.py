"""GRPO with three budget-aware objectives (arXiv 2601.21468). Start reading at `step.py`."""
