"""What a run leaves for people: `about.json` at its start and `report.html`, one file that needs no network.

- `about`: what a run ran with (`write_about`).
- `record`: a run directory read back, also while the run is still writing it.
- `curves`: which metric is drawn where; `charts`: line charts as geometry for inline SVG.
- `trajectories`: which questions are shown, and their turns put in order.
- `evaluation`: accuracy against budget; `values`: JSON values as text and numbers.
- `page`: everything above put into `assets/report.html` (`write_report`).
"""

from memocr_jax.report.about import write_about
from memocr_jax.report.page import ReportLimits, write_report

__all__ = ["ReportLimits", "write_about", "write_report"]
