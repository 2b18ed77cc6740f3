"""Evaluate: `python -m memocr_jax.evaluate --config configs/tiny.yaml [--checkpoint RUN_DIR]`.

Every question is drafted once and its page read at every budget. A question that could not be read counts as
wrong at every budget, and is listed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, SamplingConfig, parse_command
from memocr_jax.errors import run_command

if TYPE_CHECKING:
    from flax import nnx

    from memocr_jax.rl.rollout import Agent, Memory, Reading, ReadRequest
    from memocr_jax.types import QaExample

METHOD = "visual memory"
SCORES = ("em", "f1", "sub_em")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--checkpoint",
            metavar="RUN_DIR",
            help="evaluate the newest checkpoint of this run; without it, the weights that --config names",
        )

    config, args = parse_command(
        argv, "python -m memocr_jax.evaluate", "Read the validation questions at every budget.", add_arguments
    )
    evaluate(config, args.checkpoint)
    return 0


def evaluate(config: Config, checkpoint: str | None = None) -> dict[str, Any]:
    """Evaluate on the validation split, print the table and write it under `<run>/evaluation/`.

    `checkpoint` is a run directory; without it the weights that `config` names are evaluated and the results
    go to `config.run.dir`. Returns the summary: accuracy, F1 and sub-EM by budget, over all questions.
    """
    from rich.console import Console
    from rich.progress import Progress

    from memocr_jax.checkpoint import abstract_like, open_checkpoint, require_same_model
    from memocr_jax.data.loader import load_examples
    from memocr_jax.report import write_report
    from memocr_jax.sharding import param_shardings
    from memocr_jax.system import build_system

    console = Console(highlight=False)
    system = build_system(config)
    examples = load_examples(config.data, system.tokenizer, "validation")
    for problem in examples.problems:
        console.print(f"left out: {problem}", soft_wrap=True)
    examples = [examples[i] for i in range(min(config.eval.questions or len(examples), len(examples)))]
    run_dir = Path(checkpoint or config.run.dir)
    step = 0
    if checkpoint is None:
        params = system.initial_params()
    else:
        with open_checkpoint(checkpoint) as (checkpoints, step):
            require_same_model(checkpoints.meta(step), system.model, checkpoint)
            shardings = param_shardings(system.abstract_params, system.mesh)
            target = abstract_like(system.abstract_params, shardings)
            params = checkpoints.restore(step, params=target)["params"]

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        show = lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)  # noqa: E731
        with system.agent(progress=show) as agent:
            results = evaluate_examples(agent, params, examples, config)

    summary = summarise(results, config, step)
    directory = run_dir / "evaluation"
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    (directory / "results.jsonl").write_text(lines, encoding="utf-8")
    (directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(_table(summary, config))
    for failure in summary["failures"]:
        console.print(f"not read: {failure}", soft_wrap=True)
    console.print(f"results: {directory}", soft_wrap=True)
    if (run_dir / "config.yaml").is_file():
        console.print(f"report:  {write_report(run_dir)}", soft_wrap=True)
    return summary


def evaluate_examples(
    agent: Agent, params: nnx.State, examples: Sequence[QaExample], config: Config
) -> list[dict[str, Any]]:
    """One result for each question, sample and budget: what was predicted, and how it scores."""
    from memocr_jax.rl.rollout import ReadRequest
    from memocr_jax.types import TurnKind
    from render.views import fit

    # What is sampled here depends on the seed alone, never on the step that is evaluated.
    sampling = SamplingConfig(temperature=config.eval.temperature, top_p=config.eval.top_p)
    memories = agent.draft_memories(params, examples, config.eval.samples, sampling, "evaluate")
    memories = agent.render_memories(memories)
    cells = [(memory, budget) for memory in memories for budget in config.eval.budgets]
    requests: list[ReadRequest] = []
    for memory, budget in cells:
        if memory.readable:
            example = examples[memory.q]
            asked = ((TurnKind.QA, example.question, example.answers),)
            requests.append(ReadRequest(memory, fit(memory.page.pixels, budget), asked, str(budget)))
    readings = iter(agent.read_pages(params, examples, requests, sampling, "evaluate"))
    return [
        _result(examples[memory.q], memory, budget, next(readings) if memory.readable else None, config)
        for memory, budget in cells
    ]


def _result(
    example: QaExample, memory: Memory, budget: int, reading: Reading | None, config: Config
) -> dict[str, Any]:
    from memocr_jax.answers import boxed_answer, exact_match, f1, sub_em

    prediction = None if reading is None else boxed_answer(reading.text)
    status = "NO_ANSWER" if not example.answers else str(memory.page.status)
    return {
        "dataset": Path(config.data.path).stem if config.data.path else config.data.source,
        "length": example.document_tokens,
        "method": METHOD,
        "budget": budget,
        "sample": memory.g,
        "id": example.example_id,
        "answers": list(example.answers),
        "prediction": prediction,
        "em": exact_match(prediction, example.answers),
        "f1": f1(prediction, example.answers),
        "sub_em": sub_em(prediction, example.answers),
        "status": status,
        "image_tokens": None if reading is None else reading.view_tokens,
        "page_hash": memory.page.content_hash,
    }


def summarise(results: Sequence[dict[str, Any]], config: Config, step: int) -> dict[str, Any]:
    """Mean scores by budget over all questions and samples, failures counted as wrong and listed."""
    budgets = {}
    for budget in sorted(set(config.eval.budgets), reverse=True):
        rows = [r for r in results if r["budget"] == budget]
        tokens = [r["image_tokens"] for r in rows if r["image_tokens"] is not None]
        budgets[str(budget)] = {
            **{name: sum(r[name] for r in rows) / len(rows) for name in SCORES},
            "image_tokens": sum(tokens) / len(tokens) if tokens else None,
        }
    unreadable = {
        f"{r['id']} (sample {r['sample']}): {r['status']}" for r in results if r["image_tokens"] is None
    }
    unscorable = {f"{r['id']}: no accepted answer" for r in results if r["status"] == "NO_ANSWER"}
    return {
        "checkpoint": step,
        "questions": len({r["id"] for r in results}),
        "samples": config.eval.samples,
        "budgets": budgets,
        "failures": sorted(unreadable | unscorable),
    }


def _table(summary: dict[str, Any], config: Config) -> Any:
    from rich.table import Table

    title = (
        f"{METHOD}, step {summary['checkpoint']}: {summary['questions']} questions x {config.eval.samples} "
        f"samples, {len(summary['failures'])} failed"
    )
    table = Table(title=title)
    for name in ("budget", "image tokens", "EM %", "F1 %", "sub-EM %"):
        table.add_column(name, justify="right")
    for budget, scores in summary["budgets"].items():
        tokens = scores["image_tokens"]
        table.add_row(
            budget,
            "-" if tokens is None else f"{tokens:.1f}",
            *(f"{100 * scores[name]:.1f}" for name in SCORES),
        )
    return table


if __name__ == "__main__":
    run_command(main)
