"""Evaluate: `python -m memocr_jax.evaluate --config configs/eval.yaml [--checkpoint RUN_DIR] [--to DIR]`.

Data sets x lengths x methods x budgets (`eval` in the configuration). Every question is drafted once, and
every method and budget reads that draft. The same command goes on where it was interrupted. A question that
could not be read counts as wrong and is listed. docs/evaluation.md says what it leaves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, ConfigOption, answer_settings, evaluation_sets, parse_command
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.progress import ProgressBar, duration
from memocr_jax.core.signals import StopSignals, exit_status
from render.settings import RenderSettings

if TYPE_CHECKING:
    from flax import nnx

    from memocr_jax.agent.open import Source
    from memocr_jax.agent.system import System
    from memocr_jax.data.loader import Examples


@dataclasses.dataclass(frozen=True)
class Options(ConfigOption):
    checkpoint: str | None = None
    """Run directory whose newest checkpoint is evaluated; without it, the weights that --config names."""
    step: int | None = None
    """Evaluate this step's checkpoint instead."""
    to: str | None = None
    """Where results go; default RUN_DIR/evaluation, or run.dir/evaluation."""


def main(argv: Sequence[str] | None = None) -> int:
    config, args = parse_command(
        sys.argv[1:] if argv is None else argv,
        "python -m memocr_jax.evaluate",
        "Answer questions by several methods at several budgets.",
        Options,
    )
    if args.step is not None and args.checkpoint is None:
        raise UserError(f"--step is {args.step}, but no --checkpoint is given; name the run")
    with StopSignals(at_once=True) as stop:
        try:
            evaluate(config, args.checkpoint, args.step, args.to)
        except KeyboardInterrupt:
            if stop.received is None:
                raise
    return exit_status(stop.received)


@dataclasses.dataclass(frozen=True)
class _Set:
    """One column of the table."""

    name: str
    length: str
    examples: Examples
    questions: int
    """The first so many of `examples` are asked."""


def evaluate(
    config: Config, checkpoint: str | None = None, step: int | None = None, to: str | Path | None = None
) -> dict[str, Any]:
    """Run or continue the evaluation that `config.eval` describes; returns its summary.

    Args:
        checkpoint: a run directory, whose checkpoint of `step` (default the newest) is evaluated; None means
            the weights that `config` names.
        to: where results go; default `evaluation/` in the run directory.

    Raises UserError for what cannot work, and when `to` holds another evaluation.
    """
    from rich.console import Console

    from memocr_jax.agent.system import build_system
    from memocr_jax.core.processes import gather, is_main, joined, together
    from memocr_jax.data.loader import load_examples
    from memocr_jax.evaluation.journal import Journal, write_results
    from memocr_jax.runs.compiled import use_compilation_cache

    console = Console(highlight=False)
    directory = Path(to or Path(checkpoint or config.run.dir) / "evaluation")
    with joined(config.processes):
        import jax

        use_compilation_cache(config.run.compiled_dir)
        weights = Weights(config, checkpoint, step)
        config = weights.config
        journal = Journal(directory, jax.process_index())
        mark = _fingerprint(config, weights.identity())
        if not config.run.fresh:
            journal.check(mark)
        system = build_system(config)
        weights.require_same_model(system)
        sets = []
        for name, length, data in evaluation_sets(config):
            examples = load_examples(data, system.tokenizer, "validation")
            sets.append(
                _Set(name, length, examples, min(config.eval.questions or len(examples), len(examples)))
            )

        def prepare() -> None:
            if is_main():
                if config.run.fresh and (moved := _move_aside(directory)):
                    console.print(f"--run.fresh: what was in {directory} is now in {moved}", soft_wrap=True)
                journal.open(mark)

        together(prepare)
        if not is_main():
            journal.open(mark)
        finished = journal.finished()
        work = _Work(config, sets, journal, finished, jax.process_index(), jax.process_count())
        with _Progress(console, config, sets, work, is_main()) as progress:
            # Restoring and copying weights is done by all processes together, or by none.
            if sum(gather(work.left)):
                params = system.sampler_params(weights.load(system))
                try:
                    with system.agent(progress=progress.stage) as agent:
                        work.do(agent, params, progress)
                except KeyboardInterrupt:
                    if is_main():  # what there is so far, for a person; the journal has it all
                        write_results(directory, journal.finished())
                    raise
            gather(0)  # wait for the others: their journals are a part of the results
            if not is_main():
                return {}
            progress.stop()
            return _finish(directory, config, sets, journal, weights, console)


class _Work:
    """The questions of one process, wave by wave."""

    def __init__(
        self, config: Config, sets: list[_Set], journal: Any, finished: dict, process: int, processes: int
    ):
        self.config, self.sets, self.journal, self.finished = config, sets, journal, finished
        self.own = [range(process, one.questions, processes) for one in sets]
        self.total = sum(map(len, self.own))
        self.left = sum((s, i) not in finished for s, own in enumerate(self.own) for i in own)

    def do(self, agent: Any, params: nnx.State, progress: _Progress) -> None:
        """Answer what is not finished. A wave of which some questions are is done again as a whole: its
        batches are then those of an evaluation that was never interrupted, and so are its numbers."""
        from memocr_jax.evaluation.journal import write_pages
        from memocr_jax.evaluation.methods import answer_questions, waves

        for s, one in enumerate(self.sets):
            own = self.own[s]
            for wave in waves(len(own), self.config.eval, agent.engine.config.groups):
                places = [(s, own[k]) for k in wave]
                if all(place in self.finished for place in places):
                    continue
                examples = [one.examples[i] for _, i in places]
                answered = answer_questions(agent, params, examples, self.config.eval)
                new = 0
                for place, question in zip(places, answered, strict=True):
                    if place in self.finished:
                        continue
                    shown = self.config.eval.report_questions
                    if not shown or place[1] < shown:
                        write_pages(self.journal.directory, question.pages)
                    self.journal.append(place, question.entry(one.name, one.length))
                    new += 1
                progress.wave(one, new)


def _finish(
    directory: Path, config: Config, sets: list[_Set], journal: Any, weights: Weights, console: Any
) -> dict[str, Any]:
    """Write results, summary, tables, plots and report, and print the table."""
    from memocr_jax.evaluation.journal import write_results
    from memocr_jax.evaluation.outputs import write_outputs
    from memocr_jax.evaluation.tables import console_table
    from memocr_jax.report import write_evaluation, write_report

    entries = journal.finished()
    write_results(directory, entries)
    about = {
        "checkpoint": weights.step,
        "weights": weights.name,
        "samples": config.eval.samples,
        "temperature": config.eval.temperature,
        "top_p": config.eval.top_p,
        "sets": [
            {
                "dataset": one.name,
                "length": one.length,
                "questions": one.questions,
                "left_out": len(one.examples.problems),
                "problems": list(one.examples.problems[:100]),
            }
            for one in sets
        ],
    }
    summary = write_outputs(directory, entries, config.eval, config.run.seed, about)
    write_evaluation(directory, entries, summary, config.eval)
    console.print(console_table(summary))
    for one in summary["sets"]:
        for problem in one["problems"]:
            console.print(f"left out of {one['dataset']} {one['length']}: {problem}", soft_wrap=True)
    for failure in summary["failures"]:
        console.print(f"not read: {failure}", soft_wrap=True)
    console.print(f"results: {directory}", soft_wrap=True)
    console.print(f"report:  {directory / 'report.html'}", soft_wrap=True)
    run_dir = Path(weights.name if weights.step is not None else config.run.dir)
    if directory.parent == run_dir and (run_dir / "config.yaml").is_file():
        write_report(run_dir)
    return summary


class Weights:
    """Which weights are evaluated: a checkpoint's, or those that the configuration names."""

    def __init__(self, config: Config, checkpoint: str | None, step: int | None):
        from memocr_jax.agent.open import find_run

        self.name = checkpoint or config.model.path
        self.source = None if checkpoint is None else find_run(checkpoint, step)
        self.config = config if self.source is None else _with_theme(config, self.source)

    @property
    def step(self) -> int | None:
        """The checkpoint's step; None without a checkpoint."""
        return None if self.source is None else self.source.meta.step

    def require_same_model(self, system: System) -> None:
        from memocr_jax.runs.checkpoint import require_same_model

        if self.source is not None:
            require_same_model(self.source.meta, system.model, self.name)

    def identity(self) -> dict[str, Any]:
        """What tells these weights from others, as far as is known without reading them."""
        if self.source is None:
            return {"weights": f"{self.config.model.path} ({self.config.model.init})"}
        path = self.source.items / "_CHECKPOINT_METADATA"
        saved = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        return {"checkpoint step": self.step, "checkpoint saved": saved}

    def load(self, system: System) -> nnx.State:
        if self.source is None:
            return system.initial_params()
        return self.source.load(system.abstract_params, system.mesh)


def _with_theme(config: Config, source: Source) -> Config:
    """Pages are drawn as the checkpoint was trained on, unless another theme is named than its run's."""
    import yaml

    from memocr_jax.runs.checkpoint import theme_of

    # As it is, not `source.config`: a run of another version may have fields that are unknown here.
    text = (source.directory / "config.yaml").read_text("utf-8")
    render = (yaml.safe_load(text) or {}).get("render") or {}
    if config.render.theme_css or config.render.theme != render.get("theme", RenderSettings.theme):
        return config
    return dataclasses.replace(config, render=theme_of(source.meta, config.render))


def _fingerprint(config: Config, weights: dict[str, Any]) -> dict[str, Any]:
    """Everything that the answers depend on, by field name."""
    from render.theme import theme_css

    fields = {**weights, **answer_settings(config)}
    # A theme is its text, wherever that came from.
    css = hashlib.sha256(theme_css(config.render).encode()).hexdigest()[:16]
    fields = {**fields, "render.theme": css, "render.theme_css": ""}
    for i, (name, length, data) in enumerate(evaluation_sets(config)):
        where = f"eval.sets[{i}]"
        fields |= {f"{where}.name": name, f"{where}.length": length}
        fields |= answer_settings(data, f"{where}.data.", decide=True)
        for field in ("path", "validation_path", "pool_path"):
            fields[f"{where}.data.{field} (contents)"] = _contents(getattr(data, field))
    return fields


def _contents(path: str) -> str:
    """A short mark of what a data file or prepared folder holds."""
    from memocr_jax.data.prepared import MANIFEST

    file = Path(path) / MANIFEST if Path(path).is_dir() else Path(path)
    if not path or not file.is_file():
        return ""
    if file.name == MANIFEST:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return f"{file.stat().st_size} bytes"


def _move_aside(directory: Path) -> Path | None:
    """Rename a directory that holds an evaluation, and say to what; anything else is left alone."""
    from memocr_jax.evaluation.journal import FOLDER

    if not (directory / FOLDER).is_dir():
        return None
    n = next(n for n in range(1, 10**6) if not Path(f"{directory}.{n}").exists())
    return directory.rename(f"{directory}.{n}")


class _Progress(ProgressBar):
    """What a person sees: questions done, how fast, how long it will take, and the stage under way."""

    def __init__(self, console: Any, config: Config, sets: list[_Set], work: _Work, shown: bool):
        self._total, self._done = work.total, work.total - work.left
        super().__init__(
            "questions", work.total, done=self._done, console=console, transient=True, shown=shown
        )
        self._new, self._rate_from, self._since = 0, 0, time.perf_counter()
        self.stage("starting")
        methods = ", ".join(config.eval.methods)
        self.say(
            f"{len(sets)} sets, {sum(one.questions for one in sets):,} questions x {config.eval.samples} "
            f"samples; {methods}; budgets {', '.join(map(str, config.eval.budgets))}"
        )
        if self._done:
            self.say(f"going on: {self._done:,} of {work.total:,} questions are finished")

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done = f"{self._done:,} of {self._total:,} questions are finished"
            self.say(f"stopped: {done}; the same command goes on")

    def wave(self, one: _Set, questions: int) -> None:
        """`questions` more are finished."""
        self._done += questions
        self._new += questions
        seconds = time.perf_counter() - self._since
        rate = (self._new - self._rate_from) / seconds if seconds > 0 else 0.0
        left = duration((self._total - self._done) / rate) if rate else "?"
        if self._rate_from == 0:
            # The first wave compiles: it says little about the others.
            self._rate_from, self._since = self._new, time.perf_counter()
        self.update(self._done, left=left)
        self.say(
            f"{one.name} {one.length}: {self._done:,}/{self._total:,} questions, "
            f"{60 * rate:,.1f} a minute, left {left}"
        )


if __name__ == "__main__":
    run_command(main)
