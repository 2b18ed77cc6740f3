"""GRPO with three budget-aware objectives (arXiv 2601.21468). Start reading at `step`.

- `step`: the whole step; `rewards`, `advantages`: scores of answers, and what turns are trained with.
- `pack`: turns as rows; `rows`: rows of a few fixed shapes, planned for all processes;
  `loss`: the loss as pure functions; `update`: its gradient and the update.
- `optimizer`: AdamW and Muon; `trainable`: which parameters are trained.
- `run`: the parts of an open run; `schedule`: when a step is sampled; `resume`: how a run continues;
  `health`: when it must stop.
- `step_metrics`, `trajectories`: what a step logs.
"""
