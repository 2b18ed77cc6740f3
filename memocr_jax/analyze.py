"""The paper's analyses: `python -m memocr_jax.analyze ANALYSIS ...` (docs/evaluation.md).

    density RUN_DIR...           gold evidence in headings and in body text, over training
    lengths RUN_DIR...           how long headings and body text are, over training
    robustness --config FILE ... gold evidence as heading or as body text: accuracy at each budget
    case EVALUATION --id ID      one question: memory, page, views, answers at each budget

Each writes NAME.json, NAME.svg and NAME.md.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from memocr_jax.config import Config, ConfigOption, evaluation_sets, parse_command
from memocr_jax.core.errors import UserError, nearest, run_command
from render.bounds import NonNegativeInt
from render.options import parse_options


@dataclasses.dataclass(frozen=True)
class OverTraining:
    directory: tyro.conf.Positional[tuple[str, ...]]
    """A run with trajectories, or an evaluation; several add up."""
    to: Path | None = None
    """Folder of the results; default DIRECTORY/analysis."""


@dataclasses.dataclass(frozen=True)
class Case:
    directory: tyro.conf.Positional[Path]
    """An evaluation, as memocr_jax.evaluate leaves it."""
    id: str
    """The question's id."""
    dataset: str | None = None
    """Name of its data set, when several have this id."""
    length: str | None = None
    """Name of its length, likewise."""
    sample: NonNegativeInt = 0
    """Which of its memories."""
    to: Path | None = None
    """Folder of the results; default DIRECTORY/analysis."""


@dataclasses.dataclass(frozen=True)
class Robustness(ConfigOption):
    checkpoint: str | None = None
    """Run directory whose newest checkpoint is read, as for memocr_jax.evaluate."""
    step: int | None = None
    """This step's checkpoint, not the newest."""
    evaluation: Path | None = None
    """Take the memories from this evaluation of the same sets; without it they are drafted."""
    to: Path | None = None
    """Folder of the results; default RUN_DIR/analysis or run.dir/analysis."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    name, *rest = argv
    if name not in ANALYSES:
        raise UserError(f"analysis {name!r} is not known{nearest(name, list(ANALYSES))}")
    print(ANALYSES[name](name, rest))
    return 0


def _over_training(name: str, argv: Sequence[str]) -> Path:
    args = parse_options(
        OverTraining,
        argv,
        f"python -m memocr_jax.analyze {name}",
        description="What memories have in headings and in body text, over training.",
    )
    if not args.directory:
        raise UserError("DIRECTORY is missing: name a run with trajectories, or an evaluation")

    from memocr_jax.evaluation import density, lengths
    from memocr_jax.evaluation.files import write_analysis
    from memocr_jax.evaluation.memories import read_memories

    memories = read_memories(args.directory)
    if name == "density":
        data = density.density(memories)
        figure, text = density.density_plot(data), density.density_text(data)
    else:
        data = lengths.lengths(memories)
        figure, text = lengths.lengths_plot(data), lengths.lengths_text(data)
    return write_analysis(args.to or Path(args.directory[0]) / "analysis", name, data, figure, text)


def _case(name: str, argv: Sequence[str]) -> Path:
    args = parse_options(
        Case,
        argv,
        "python -m memocr_jax.analyze case",
        description="One question: memory, page, views, answers.",
    )

    from memocr_jax.evaluation.case import case_plot, case_text, read_case
    from memocr_jax.evaluation.files import write_analysis

    case = read_case(args.directory, args.id, args.dataset, args.length, args.sample)
    folder = args.to or args.directory / "analysis"
    return write_analysis(folder, "case", case.data, case_plot(case), case_text(case))


def _robustness(name: str, argv: Sequence[str]) -> Path:
    config, args = parse_command(
        argv,
        "python -m memocr_jax.analyze robustness",
        "Read memories with the gold evidence put in as headings or as body text.",
        Robustness,
    )
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, samples=1))
    return _run_robustness(config, args)


def _run_robustness(config: Config, args: Robustness) -> Path:
    from memocr_jax.agent.system import build_system
    from memocr_jax.config import SamplingConfig
    from memocr_jax.core.progress import ProgressBar
    from memocr_jax.data.loader import load_examples
    from memocr_jax.evaluation import plots, tables
    from memocr_jax.evaluation.files import write_analysis
    from memocr_jax.evaluation.methods import LABEL
    from memocr_jax.evaluation.robustness import robustness
    from memocr_jax.evaluation.summary import summarise
    from memocr_jax.evaluation.weights import Weights
    from memocr_jax.runs.compiled import use_compilation_cache

    use_compilation_cache(config.run.compiled_dir)
    weights = Weights(config, args.checkpoint, args.step)
    config = weights.config
    system = build_system(config)
    weights.require_same_model(system)
    written = _memories_of(args.evaluation)
    sampling = SamplingConfig(temperature=config.eval.temperature, top_p=config.eval.top_p)
    results = []
    with ProgressBar("robustness", transient=True) as bar:

        def show(stage: str, done: int, total: int) -> None:
            bar.update(done, total)
            bar.stage(stage)

        params = system.sampler_params(weights.load(system))
        with system.agent(progress=show) as agent:
            for set_name, length, data in evaluation_sets(config):
                loaded = load_examples(data, system.tokenizer, "validation")
                asked = [loaded[i] for i in range(min(config.eval.questions or len(loaded), len(loaded)))]
                if args.evaluation:
                    asked = [e for e in asked if (set_name, length, e.example_id) in written]
                    texts = [written[set_name, length, e.example_id] for e in asked]
                else:
                    texts = [m.text for m in agent.draft_memories(params, asked, 1, sampling, LABEL)]
                results += robustness(agent, params, asked, texts, config.eval, set_name, length)
    summary = summarise(results, config.eval.bootstrap, config.run.seed)
    summary = {"weights": weights.name, "checkpoint": weights.step, **summary, "results": results}
    text = (
        "# Region robustness\n\nThe gold evidence was put before each memory, each sentence as a level-1 "
        "heading or as a paragraph, and the pages were read at every budget.\n\n"
        "![accuracy by budget](robustness.svg)\n\n" + tables.markdown(summary)
    )
    folder = args.to or Path(args.checkpoint or config.run.dir) / "analysis"
    return write_analysis(folder, "robustness", summary, plots.by_budget(summary, "em"), text)


def _memories_of(evaluation: Path | None) -> dict[tuple[str, str, str], str]:
    """First memory of each question of an evaluation, by (data set, length, id)."""
    from memocr_jax.evaluation.journal import FOLDER, Journal

    if evaluation is None:
        return {}
    if not (evaluation / FOLDER).is_dir():
        raise UserError(
            f"--evaluation {evaluation}: holds no evaluation; run python -m memocr_jax.evaluate first"
        )
    found = {}
    for entry in Journal(evaluation).finished().values():
        first = entry["results"][0]
        if entry["memories"]:
            found[first["dataset"], first["length"], first["id"]] = entry["memories"][0]
    return found


ANALYSES = {"density": _over_training, "lengths": _over_training, "robustness": _robustness, "case": _case}


if __name__ == "__main__":
    run_command(main)
