"""The report of a run: its settings, its curves, and questions with memories, pages and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from memocr_jax.report.curves import EVIDENCE, OBJECTIVES, draw_curves
from memocr_jax.report.evaluation import read_scores
from memocr_jax.report.page import render_page
from memocr_jax.report.pictures import Pictures
from memocr_jax.report.questions import select_groups
from memocr_jax.report.story import AFTER, BEFORE, read_story
from memocr_jax.report.values import ends, finite, known, percent, short, text, texts
from memocr_jax.runs.record import RunRecord, read_run
from render.files import write_atomically

Read = TypeVar("Read")


@dataclasses.dataclass(frozen=True)
class ReportLimits:
    """How much of a run's trajectories goes into the report."""

    max_steps: int = 6
    """Steps whose questions are shown, spread evenly over the run."""
    questions_per_step: int = 2
    """Questions shown of each of them."""
    max_turns: int = 400
    """Turns shown in all, about: whole questions are left out."""
    image_mb: int = 24
    """Size of all PNG files together; later ones are left out and counted."""
    text_chars: int = 12_000
    """A longer text loses its middle, and says so."""


def write_report(run_dir: Path, limits: ReportLimits | None = None) -> Path:
    """Write `<run_dir>/report.html` from what the run has left so far.

    Args:
        run_dir: a run directory (docs/run_directory.md), finished or not.
        limits: how much is shown; None means the defaults.

    Returns:
        The path of the report. It is replaced in one go: a reader never sees half of it.

    Raises:
        UserError: `run_dir` is not a run directory.
    """
    record = read_run(Path(run_dir))
    path = record.run_dir / "report.html"
    write_atomically(path, render_report(record, limits or ReportLimits()))
    return path


def render_report(record: RunRecord, limits: ReportLimits) -> str:
    """The report's HTML."""
    notes = list(record.notes)

    def readable(what: str, read: Callable[[], Read]) -> Read | None:
        """The result of `read` for an evaluation's files, which may be damaged or of another version."""
        try:
            return read()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            notes.append(f"{what} could not be read")
            return None

    pictures = Pictures(record.run_dir / "trajectories", limits.image_mb * 2**20)
    groups, skipped = select_groups(
        record.turn_files,
        max_steps=limits.max_steps,
        questions_per_step=limits.questions_per_step,
        max_turns=limits.max_turns,
        pictures=pictures,
    )
    steps = record.metrics[-1]["step"] if record.metrics else 0
    story = readable(f"{BEFORE} and {AFTER}", lambda: read_story(record.run_dir, steps, limits.image_mb))
    scores = record.evaluation.get("cells") and readable(
        f"{AFTER}/summary.json", lambda: read_scores(record.evaluation)
    )
    charts, others = draw_curves(record.metrics)
    if skipped:
        notes.append(f"trajectories: {skipped} unreadable line{'s' if skipped > 1 else ''} left out")
    if pictures.left_out:
        notes.append(f"{pictures.left_out} page images left out: more than {limits.image_mb} MB in all")
    return render_page(
        limits.text_chars,
        title=record.run_dir.resolve().name,
        kind="run",
        sentence=story.sentence if story else _sentence(record),
        notes=notes,
        facts=_facts(record),
        story=story,
        charts=[chart for chart in charts if not story or chart.title != EVIDENCE],
        evidence=[chart for chart in charts if story and chart.title == EVIDENCE],
        others=[_summary(record, key) for key in others],
        scores=scores,
        link=f"{AFTER}/report.html" if (record.run_dir / AFTER / "report.html").is_file() else None,
        groups=groups,
        config_text=record.config_text,
        command=" ".join(texts(record.about.get("command"))),
    )


def _sentence(record: RunRecord) -> str:
    """A sentence about the rewards of training."""
    went = []
    for name, words in OBJECTIVES.items():
        if values := known(record.metrics, f"reward/{name}"):
            first, last = map(percent, ends(values))
            went.append(f"{first} → {last} ({words})")
    if not went:
        return "No step has finished yet." if not record.metrics else ""
    return f"Right answers over {record.metrics[-1]['step']:,} steps of training: {', '.join(went)}."


def _summary(record: RunRecord, key: str) -> tuple[str, ...]:
    """A metric that has no chart: its name, first and last tenth, least and most."""
    values = known(record.metrics, key)
    return (key, *map(short, (*ends(values), min(values), max(values))))


def _facts(record: RunRecord) -> list[tuple[str, str, str]]:
    """Facts about the run: (name, value, small print); facts that the run lacks are left out."""

    def of(path: str) -> Any:
        node: Any = record.config
        for name in path.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def joined(*parts: str | None) -> str:
        return " · ".join(part for part in parts if part)

    def named(path: str, form: str) -> str | None:
        value = of(path)
        return None if value in (None, "", 0) else form.format(value)

    def newest(key: str, form: str) -> str | None:
        values = known(record.metrics, key)
        return form.format(short(ends(values)[1])) if values else None

    about = record.about
    parameters = finite(about.get("model_parameters"))
    started = text(about.get("started"))
    done = record.metrics[-1]["step"] if record.metrics else 0
    versions = about["versions"] if isinstance(about.get("versions"), Mapping) else {}
    total = of("train.steps")
    facts = [
        (
            "Steps",
            f"{done:,}" + (f" of {total:,}" if isinstance(total, int) else ""),
            joined(
                newest("time/step_s", "{} s a step"),
                f"{len(record.metrics):,} recorded" if done != len(record.metrics) else None,
            ),
        ),
        (
            "Model",
            f"{short(parameters)} parameters" if parameters else text(of("model.path")),
            joined(
                text(of("model.path")) if parameters else None,
                named("model.init", "{} weights"),
                named("model.dtype", "{}"),
            ),
        ),
        (
            "Data",
            text(of("data.source")),
            joined(
                named("data.path", "{}"),
                newest("document/tokens", "documents of {} tokens"),
                named("data.max_chunks", "at most {} chunks"),
                named("data.chunk_tokens", "of {} tokens"),
            ),
        ),
        (
            "A step",
            joined(
                named("rl.questions_per_step", "{} questions"), named("rl.group_size", "{} memories each")
            ),
            joined(
                named("agent.budget_tokens", "pages read at {} visual tokens"),
                named("agent.low_res_factor", "and {} times smaller per side"),
            ),
        ),
        (
            "Seeds",
            joined(
                *(f"{part} {seed}" for part in ("run", "data") if (seed := of(f"{part}.seed")) is not None)
            ),
            "",
        ),
        (
            "Machine",
            text(about.get("devices")),
            f"started {started[:16].replace('T', ' ')}" if started else "",
        ),
        ("Versions", "", joined(*(f"{name} {value}" for name, value in versions.items()))),
    ]
    return [fact for fact in facts if fact[1] or fact[2]]
