"""`report.html`: one file, pictures and all, that a person can open anywhere and without a network.

Everything that comes from a run is untrusted: a model may write anything. The template escapes all of it,
pictures must be PNG files inside the trajectories' folder, and the page's own policy forbids every request
and every script but the one it carries.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from memocr_jax.report.curves import REWARDS, draw_curves, trend
from memocr_jax.report.evaluation import read_evaluation
from memocr_jax.report.record import RunRecord, read_run
from memocr_jax.report.story import read_story
from memocr_jax.report.trajectories import KIND_NAMES, PictureReader, ShownTurn, select_groups
from memocr_jax.report.values import finite, short, text, texts
from render.files import write_atomically

UNSAFE_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters and lone surrogates: no HTML document may hold them."""


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
    pictures = PictureReader(record.run_dir / "trajectories", limits.image_mb * 2**20)
    groups, skipped = select_groups(
        record.turn_files,
        max_steps=limits.max_steps,
        questions_per_step=limits.questions_per_step,
        max_turns=limits.max_turns,
        pictures=pictures,
    )
    charts, other_charts = draw_curves(record.metrics)
    notes = list(record.notes)
    if skipped:
        notes.append(f"trajectories: {skipped} unreadable line{'s' if skipped > 1 else ''} left out")
    if pictures.left_out:
        notes.append(f"{pictures.left_out} page images left out: more than {limits.image_mb} MB in all")
    assets = resources.files("memocr_jax.report") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        environment(limits.text_chars)
        .get_template("report.html")
        .render(
            record=record,
            facts=headline(record),
            trends=[t for key in REWARDS if (t := trend(record.metrics, key))],
            command=" ".join(texts(record.about.get("command"))),
            story=read_story(record, limits.image_mb),
            charts=charts,
            other_charts=other_charts,
            evaluation=read_evaluation(record.evaluation),
            groups=groups,
            kinds=KIND_NAMES,
            notes=notes,
            written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def headline(record: RunRecord) -> list[tuple[str, str, str]]:
    """The facts on top: (name, value, small print), leaving out what the run does not say."""

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

    about = record.about
    parameters = finite(about.get("model_parameters"))
    started = text(about.get("started"))
    done = record.metrics[-1]["step"] if record.metrics else 0
    versions = about["versions"] if isinstance(about.get("versions"), Mapping) else {}
    seconds = trend(record.metrics, "time/step_s")
    total = of("train.steps")
    facts = [
        (
            "Steps",
            f"{done:,}" + (f" of {total:,}" if isinstance(total, int) else ""),
            joined(
                seconds and f"{seconds.last} s a step",
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
                named("data.max_chunks", "at most {} chunks"),
                named("data.chunk_tokens", "{} tokens a chunk"),
            ),
        ),
        (
            "A step",
            joined(named("rl.questions_per_step", "{} questions"), named("rl.group_size", "{} samples")),
            joined(
                named("agent.budget_tokens", "pages read at {} visual tokens"),
                named("agent.low_res_factor", "and {} times smaller per side"),
            ),
        ),
        (
            "Seeds",
            joined(
                *(
                    f"{part} {of(f'{part}.seed')}"
                    for part in ("run", "data")
                    if of(f"{part}.seed") is not None
                )
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


def environment(text_chars: int, *packages: str) -> jinja2.Environment:
    """Templates with escaping always on, and the few filters they use.

    Args:
        text_chars: a longer text loses its middle, and says so.
        packages: packages whose `assets` have templates too.
    """

    def clean(value: Any) -> str:
        return UNSAFE_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text(value))

    def clip(value: Any) -> str:
        """Text cut in the middle when too long; to be shown as it is, never as markup."""
        whole, keep = clean(value), text_chars // 2
        if len(whole) <= 2 * keep:
            return whole
        return f"{whole[:keep]}\n\n[… {len(whole) - 2 * keep:,} characters left out …]\n\n{whole[-keep:]}"

    def lines(turn: ShownTurn, before: ShownTurn | None) -> list[tuple[str, bool]]:
        """Lines of a draft, each with whether it is new; where no line stays, none stands out."""
        shown = clip(turn.response).splitlines(keepends=True)
        known = set(clean(before.response).splitlines()) if before else set()
        new = [bool(line.strip()) and line.rstrip("\n") not in known for line in shown]
        some_stay = any(line.strip() and not is_new for line, is_new in zip(shown, new, strict=True))
        return [(line, is_new and some_stay) for line, is_new in zip(shown, new, strict=True)]

    def signed(value: Any) -> str:
        number = finite(value)
        return "–" if number is None else ("+" if number > 0 else "") + short(number).replace("-", "−")

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "assets") for package in (*packages, "memocr_jax.report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    environment.filters.update(clip=clip, short=lambda v: short(finite(v)), signed=signed, lines=lines)
    return environment
