"""How long the crucial and the detailed region of memories are, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memocr_jax.agent.regions import split_regions
from memocr_jax.evaluation.density import COLOURS, REGIONS
from memocr_jax.evaluation.files import table
from memocr_jax.evaluation.memories import FinalMemory
from memocr_jax.evaluation.plots import figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = (0.1, 0.5, 0.9)


def lengths(memories: Sequence[FinalMemory]) -> dict[str, Any]:
    """Words of each region of each memory: `steps` holds an object a step with `memories` and, by region, the
    sorted `words` of all memories, their `mean` and `quantiles` (10, 50, 90 %)."""
    steps = []
    for step in sorted({memory.step for memory in memories}):
        split = [split_regions(memory.text, memory.mode) for memory in memories if memory.step == step]
        regions = {}
        for region in REGIONS:
            words = sorted(len(getattr(parts, region)) for parts in split)
            quantiles = [float(q) for q in np.quantile(words, QUANTILES)]
            regions[region] = {"words": words, "mean": sum(words) / len(words), "quantiles": quantiles}
        steps.append({"step": step, "memories": len(split), **regions})
    return {"steps": steps}


def lengths_plot(data: dict[str, Any]) -> Figure:
    """Median and 10 to 90 % of each region over the steps; distributions at the first and the last step."""
    figure, axes = figure_of(1, 3, (3.6, 2.8))
    steps = data["steps"]
    xs = [step["step"] for step in steps]
    for region in REGIONS:
        low, middle, high = zip(*(step[region]["quantiles"] for step in steps), strict=True)
        axes[0][0].plot(xs, middle, color=COLOURS[region], marker="o", markersize=4, label=region)
        axes[0][0].fill_between(xs, low, high, color=COLOURS[region], alpha=0.15, linewidth=0)
    axes[0][0].set_title("median, 10 to 90 %", fontsize=10)
    axes[0][0].set_xlabel("step")
    axes[0][0].set_ylabel("words of a memory")
    axes[0][0].xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].legend(frameon=False, fontsize=9)
    for axis, region in zip(axes[0][1:], REGIONS, strict=True):
        most = max(max(step[region]["words"]) for step in steps)
        bins = np.linspace(0, most + 1, min(most + 1, 24) + 1)
        for step, style in ((steps[0], {"histtype": "step", "linewidth": 1.4}), (steps[-1], {"alpha": 0.45})):
            if step is steps[-1] or len(steps) > 1:
                axis.hist(
                    step[region]["words"],
                    bins,
                    color=COLOURS[region],
                    label=f"step {step['step']}",
                    weights=np.full(step["memories"], 100 / step["memories"]),
                    **style,
                )
        axis.set_title(region, fontsize=10)
        axis.set_xlabel("words")
        axis.legend(frameon=False, fontsize=9)
    axes[0][1].set_ylabel("memories, %")
    return figure


def lengths_text(data: dict[str, Any]) -> str:
    rows = [
        [
            step["step"],
            step["memories"],
            *(v for region in REGIONS for v in (step[region]["mean"], *step[region]["quantiles"])),
        ]
        for step in data["steps"]
    ]
    head = ["step", "memories"]
    head += [f"{region} {name}" for region in REGIONS for name in ("mean", "10 %", "median", "90 %")]
    return (
        "# Lengths of the regions\n\nWords of a memory in level-1 headings (crucial) and in text that is no "
        "heading (detailed).\n\n![lengths](lengths.svg)\n\n" + table(head, rows)
    )
