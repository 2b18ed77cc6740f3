"""Information density over training: how much of what is drawn large, and small, is gold evidence.

An analysis of arXiv 2601.21468. The crucial region is the level-1 headings, the detailed one body text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memocr_jax.agent.regions import content, split_regions
from memocr_jax.core.errors import UserError
from memocr_jax.evaluation.files import table
from memocr_jax.evaluation.memories import FinalMemory
from memocr_jax.evaluation.plots import PALETTE, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGIONS = ("crucial", "detailed")
COLOURS = dict(zip(REGIONS, PALETTE, strict=False))


def density(memories: Sequence[FinalMemory]) -> dict[str, Any]:
    """Mean density and coverage of both regions at every step.

    `steps` holds an object a step: `memories` (with evidence), `without_evidence` (left out) and for each
    region `density` (mean over memories that have such a region, None if none has), `coverage` and `words`
    (means over all) and `empty` (memories without the region). Raises UserError when no memory has evidence.
    """
    steps = []
    for step in sorted({memory.step for memory in memories}):
        having = [memory for memory in memories if memory.step == step and any(memory.evidence)]
        missing = sum(memory.step == step for memory in memories) - len(having)
        if not having:
            continue
        split = [split_regions(memory.text, memory.mode) for memory in having]
        regions = {}
        for region in REGIONS:
            contents = [
                content(getattr(parts, region), memory.evidence)
                for parts, memory in zip(split, having, strict=True)
            ]
            densities = [c.density for c in contents if c.density is not None]
            regions[region] = {
                "density": sum(densities) / len(densities) if densities else None,
                "coverage": sum(c.coverage for c in contents) / len(contents),
                "words": sum(c.words for c in contents) / len(contents),
                "empty": len(contents) - len(densities),
            }
        steps.append({"step": step, "memories": len(having), "without_evidence": missing, **regions})
    if not steps:
        raise UserError(
            "no memory has gold evidence: the data has none, or the run is from before it was kept"
        )
    return {"steps": steps}


def density_plot(data: dict[str, Any]) -> Figure:
    """Density and coverage of both regions against the step."""
    figure, axes = figure_of(1, 2, (4.0, 2.8))
    steps = [step["step"] for step in data["steps"]]
    for axis, name, title in (
        (axes[0][0], "density", "density: share of the region's words"),
        (axes[0][1], "coverage", "coverage: share of the evidence's words"),
    ):
        for region in REGIONS:
            points = [(s, step[region][name]) for s, step in zip(steps, data["steps"], strict=True)]
            known = [(s, 100 * value) for s, value in points if value is not None]
            if known:
                axis.plot(
                    *zip(*known, strict=True), color=COLOURS[region], marker="o", markersize=4, label=region
                )
        axis.set_ylim(0, 100)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set_ylabel("gold evidence, %")
    axes[0][0].legend(frameon=False, fontsize=9)
    return figure


def density_text(data: dict[str, Any]) -> str:
    rows = [
        [
            step["step"],
            step["memories"],
            *(step[region][name] for region in REGIONS for name in ("density", "coverage", "words", "empty")),
        ]
        for step in data["steps"]
    ]
    head = ["step", "memories"]
    head += [f"{region} {name}" for region in REGIONS for name in ("density", "coverage", "words", "empty")]
    return (
        "# Information density\n\n"
        "Density: share of a region's words that occur in the gold evidence. Coverage: share of the "
        "evidence's words that occur in the region. Crucial: level-1 headings; detailed: text that is no "
        "heading. Empty: memories without the region, which have no density.\n\n"
        "![density](density.svg)\n\n" + table(head, rows)
    )
