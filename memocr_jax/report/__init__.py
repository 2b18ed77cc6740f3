"""Reports for people: `report.html` of a run and of an evaluation, each one file that needs no network.

- `about`: versions, devices and command of a run, written at its start (`write_about`).
- `run`, `evaluation`: what the two reports show (`write_report`, `write_evaluation`).
- `story`: the same questions before and after training; `questions`: those of the training, turn by turn.
- `curves`: the charts and their metrics; `charts`: line charts, drawn by matplotlib.
- `page`: the one template, `assets/report.html`; `pictures`, `values`: pages, texts and numbers for it.
"""

from memocr_jax.report.about import write_about
from memocr_jax.report.evaluation import write_evaluation
from memocr_jax.report.run import ReportLimits, write_report

__all__ = ["ReportLimits", "write_about", "write_evaluation", "write_report"]
