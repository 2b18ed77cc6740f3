"""Evaluate: `python -m memocr_jax.evaluate --config configs/eval.yaml [--checkpoint RUN_DIR] [--to DIR]`.

Data sets x lengths x methods x budgets (`eval` in the configuration). Every question is drafted once, and
every method and budget reads that draft. The same command continues after an interruption. A question that
could not be read counts as wrong and is listed. docs/evaluation.md describes the results.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, ConfigOption, parse_command
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.progress import ProgressBar, duration
from memocr_jax.core.signals import StopSignals, exit_status

if TYPE_CHECKING:
    from memocr_jax.evaluation.weights import Weights
    from memocr_jax.evaluation.work import EvaluationSet, EvaluationWork


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
    from memocr_jax.evaluation.journal import Journal, move_aside, write_results
    from memocr_jax.evaluation.weights import Weights, fingerprint
    from memocr_jax.evaluation.work import EvaluationWork, load_sets
    from memocr_jax.runs.compiled import use_compilation_cache

    console = Console(highlight=False)
    directory = Path(to or Path(checkpoint or config.run.dir) / "evaluation")
    with joined(config.processes):
        import jax

        use_compilation_cache(config.run.compiled_dir)
        weights = Weights(config, checkpoint, step)
        config = weights.config
        journal = Journal(directory, jax.process_index())
        mark = fingerprint(config, weights.identity())
        if not config.run.fresh:
            journal.check(mark)
        system = build_system(config)
        weights.require_same_model(system)
        sets = load_sets(config, system.tokenizer)

        def prepare() -> None:
            if is_main():
                if config.run.fresh and (moved := move_aside(directory)):
                    console.print(f"--run.fresh: what was in {directory} is now in {moved}", soft_wrap=True)
                journal.open(mark)

        together(prepare)
        if not is_main():
            journal.open(mark)
        finished = journal.finished()
        work = EvaluationWork(config, sets, journal, finished, jax.process_index(), jax.process_count())
        with _Progress(console, config, sets, work, is_main()) as progress:
            # Restoring and copying weights is done by all processes together, or by none.
            if sum(gather(work.left)):
                params = system.sampler_params(weights.load(system))
                try:
                    with system.agent(progress=progress.stage) as agent:
                        work.do(agent, params, progress.wave)
                except KeyboardInterrupt:
                    if is_main():  # the answers so far, for a person; the journal has them all
                        write_results(directory, journal.finished())
                    raise
            gather(0)  # wait for the others: their journals are a part of the results
            if not is_main():
                return {}
            progress.stop()
            return _finish(directory, config, sets, journal, weights, console)


def _finish(
    directory: Path, config: Config, sets: list[EvaluationSet], journal: Any, weights: Weights, console: Any
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


class _Progress(ProgressBar):
    """The terminal output: questions done, their rate, the time left, and the stage under way."""

    def __init__(
        self, console: Any, config: Config, sets: list[EvaluationSet], work: EvaluationWork, shown: bool
    ):
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
            self.say(f"continuing: {self._done:,} of {work.total:,} questions are finished")

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done = f"{self._done:,} of {self._total:,} questions are finished"
            self.say(f"stopped: {done}; the same command continues")

    def wave(self, one: EvaluationSet, questions: int) -> None:
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
