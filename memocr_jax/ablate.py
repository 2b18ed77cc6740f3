"""Ablate: `python -m memocr_jax.ablate --config configs/nano_ablation.yaml [--methods "full,no RL"]`.

Trains the same start with and without parts of the recipe, over seeds, and reads held-out questions at every
budget: the form of table 2 of arXiv 2601.21468. The same command continues after an interruption, and repeats
nothing that is finished. It writes ablation.json, ablation.md and ablation.png.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memocr_jax.config import Config, from_tree, load_config, to_tree, validate
from memocr_jax.core.errors import UserError, nearest, run_command
from render.options import parse_options

PAPER = {
    "full": {1024: 74.6, 64: 67.3, 16: 62.2},
    "without augM": {1024: 61.3, 64: 48.5, 16: 41.2},
    "without augM and augQ": {1024: 62.2, 64: 41.1, 16: 32.9},
    "no RL": {1024: 56.6, 64: 55.9, 16: 37.5},
}
"""Accuracy in percent by budget in visual tokens, mean over four data sets at 10K tokens (arXiv 2601.21468,
table 2)."""


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    base: str = "configs/nano.yaml"
    """The full recipe: a configuration of `train`."""
    dir: str = "runs/nano_ablation"
    """Where the runs and the results go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training (`run.seed`)."""
    starts: tuple[str, ...] = ()
    """The checkpoint that each seed starts from (a directory for `model.path`); empty: the base's for all."""
    methods: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The changes of each method to the base, by section, such as {rl: {weight_aug_m: 0}}. {train: {steps:
    0}} evaluates the start itself."""

    def check(self, source: str) -> None:
        """Raise UserError for what cannot work."""
        if not self.methods or not self.seeds:
            raise UserError(f"{source}: methods and seeds must name at least one each")
        if self.starts and len(self.starts) != len(self.seeds):
            raise UserError(
                f"{source}: {len(self.starts)} starts for {len(self.seeds)} seeds; give one each, or none"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    config: str
    """The ablation's YAML file."""
    methods: str | None = None
    """Only these, separated by commas."""
    seeds: str | None = None
    """Only these, separated by commas."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_options(Options, argv, "python -m memocr_jax.ablate", description=__doc__)
    settings = load(args.config)
    methods = list(settings.methods) if args.methods is None else args.methods.split(",")
    for method in methods:
        if method not in settings.methods:
            raise UserError(f"--methods: no method {method!r}{nearest(method, list(settings.methods))}")
    seeds = settings.seeds if args.seeds is None else tuple(int(seed) for seed in args.seeds.split(","))
    for seed in seeds:
        if seed not in settings.seeds:
            raise UserError(f"--seeds: {seed} is not one of {list(settings.seeds)}")
        start = run_config(settings, methods[0], seed).model.path
        if not Path(start).exists():
            raise UserError(
                f"seed {seed} starts from {start}, which is not there; make it first, or leave that seed out "
                "with --seeds"
            )
    return ablate(settings, methods, seeds)


def load(path: str | Path) -> AblationConfig:
    """Read the ablation's YAML file. Raises UserError."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from error
    settings = from_tree(AblationConfig, tree, str(path))
    settings.check(str(path))
    for method in settings.methods:
        run_config(settings, method, settings.seeds[0])
    return settings


def run_config(settings: AblationConfig, method: str, seed: int) -> Config:
    """The configuration of one method and seed. Raises UserError for changes that name no field."""
    tree = to_tree(load_config(settings.base))
    for section, changes in settings.methods[method].items():
        if not isinstance(tree.get(section), dict) or not isinstance(changes, Mapping):
            raise UserError(f"methods.{method}.{section}: give a section of the configuration and its fields")
        tree[section] |= changes
    tree["run"] |= {"seed": seed, "dir": str(_folder(settings, method, seed))}
    if settings.starts:
        tree["model"]["path"] = settings.starts[settings.seeds.index(seed)]
    config = from_tree(Config, tree, f"methods.{method}")
    validate(config)
    return config


def ablate(settings: AblationConfig, methods: Sequence[str], seeds: Sequence[int]) -> int:
    """Train and evaluate what is not finished, then write the results so far. Returns the exit status of a
    training that was stopped, else 0."""
    from memocr_jax.runs.compiled import free_programs

    for seed in seeds:
        for method in methods:
            if _result_file(settings, method, seed).is_file():
                continue
            print(f"seed {seed}: {method}", flush=True)
            if status := _run(settings, method, seed):
                return status
            write_results(settings)
            free_programs()
    write_results(settings)
    print(f"results: {settings.dir}")
    return 0


def _run(settings: AblationConfig, method: str, seed: int) -> int:
    from memocr_jax.evaluate import evaluate
    from memocr_jax.evaluation.journal import Journal
    from memocr_jax.train import train

    config = run_config(settings, method, seed)
    if config.train.steps and (status := train(config)):
        return status
    folder = _folder(settings, method, seed)
    to = folder / "evaluation"
    summary = evaluate(config, str(folder) if config.train.steps else None, to=to)
    finished = Journal(to, 0).finished()
    entries = [finished[place] for place in sorted(finished)]
    result = {
        "accuracy": {
            str(cell["budget"]): {name: cell["em"][name] for name in ("mean", "low", "high")}
            for cell in summary["cells"]
        },
        **memory_shares(config, entries),
    }
    path = _result_file(settings, method, seed)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def memory_shares(config: Config, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which facts the memories of an evaluation in the synthetic world hold, and how well they are read.

    Args:
        entries: its questions in order, as the journal has them.

    Returns `gold_in_heading`, the share of memories with every word of the gold evidence in level-1 headings;
    `facts_kept`, the share of the documents' facts that stand in a memory in their own words, in order;
    `memories`, their number; `read`, budget -> "heading" (the whole gold evidence is in headings) or "body"
    (all of it stands in the memory, not in headings) -> [right answers, answers].
    """
    from memocr_jax.agent.cloze import visible_text
    from memocr_jax.agent.regions import in_heading
    from memocr_jax.core.normalize import normalize
    from memocr_jax.data.synthetic import SyntheticWorld

    world = SyntheticWorld(config.data.synthetic, config.data.seed, "validation", len(entries))
    heading = kept = facts = memories = 0
    read = {str(b): {"heading": [0, 0], "body": [0, 0]} for b in config.eval.budgets}
    mode = config.agent.memory_format
    # By number, for two documents may share a question and its evidence.
    for question, entry in zip(world, entries, strict=True):
        for sample, memory in enumerate(entry["memories"]):
            text = f" {normalize(visible_text(memory, mode))} "

            def states(sentence: str, text: str = text) -> bool:
                return f" {normalize(sentence)} " in text

            memories += 1
            kept += sum(states(fact.sentence) for fact in question.facts)
            facts += len(question.facts)
            large = in_heading(memory, entry["evidence"], mode)
            heading += large
            if not large and not all(map(states, entry["evidence"])):
                continue
            for result in entry["results"]:
                if result["sample"] == sample and result["method"] == "visual memory":
                    tally = read[str(result["budget"])]["heading" if large else "body"]
                    tally[0] += result["em"] == 1
                    tally[1] += 1
    return {
        "gold_in_heading": heading / memories,
        "facts_kept": kept / facts,
        "memories": memories,
        "read": read,
    }


def write_results(settings: AblationConfig) -> None:
    """ablation.json (method -> accuracy -> budget -> list over seeds), ablation.md and ablation.png of what
    is finished."""
    results: dict[str, dict[str, Any]] = {}
    for method in settings.methods:
        files = [(seed, _result_file(settings, method, seed)) for seed in settings.seeds]
        done = [
            (seed, json.loads(file.read_text(encoding="utf-8"))) for seed, file in files if file.is_file()
        ]
        if done:
            results[method] = {
                "seeds": [seed for seed, _ in done],
                "accuracy": {b: [r["accuracy"][b]["mean"] for _, r in done] for b in done[0][1]["accuracy"]},
                "interval": {
                    b: [[r["accuracy"][b]["low"], r["accuracy"][b]["high"]] for _, r in done]
                    for b in done[0][1]["accuracy"]
                },
                "gold_in_heading": [r["gold_in_heading"] for _, r in done],
                "facts_kept": [r["facts_kept"] for _, r in done],
                "read": [r["read"] for _, r in done],
            }
    if not results:
        return
    folder = Path(settings.dir)
    (folder / "ablation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "ablation.md").write_text(table(results), encoding="utf-8")
    plot(results, folder / "ablation.png")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, in percent: a row for each method and seed with 95 % intervals over questions, one for the
    mean over seeds, and the paper's own numbers."""
    budgets = list(next(iter(results.values()))["accuracy"])
    shares = ("gold_in_heading", "facts_kept")
    head = ["method", "seed", *(f"{b} tokens" for b in budgets), "gold evidence in heading", "facts kept"]
    rows = []
    for method, result in results.items():
        seeds = result["seeds"]
        for i, seed in enumerate(seeds):
            cells = []
            for b in budgets:
                low, high = result["interval"][b][i]
                cells.append(f"{_percent(result['accuracy'][b][i])} ({_percent(low)} to {_percent(high)})")
            rows.append([method, str(seed), *cells, *(_percent(result[name][i]) for name in shares)])
        if len(seeds) > 1:
            values = [*(result["accuracy"][b] for b in budgets), *(result[name] for name in shares)]
            rows.append([f"**{method}**", "mean", *(f"**{_percent(sum(v) / len(v))}**" for v in values)])
    theirs = sorted(next(iter(PAPER.values())), reverse=True)
    lines = [
        *_table(head, rows),
        "",
        "The paper's own (Qwen2.5-VL-7B, mean over four data sets, documents of 10K tokens):",
        "",
        *_table(
            ["method", *(f"{b} tokens" for b in theirs)],
            [[m, *(f"{values[b]:.1f}" for b in theirs)] for m, values in PAPER.items()],
        ),
    ]
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy against budget: a line for each method through its seeds' mean, a dot with a 95 % interval for
    each seed; beside it the paper's own."""
    from memocr_jax.evaluation.plots import figure_of

    figure, axes = figure_of(1, 2, (4.2, 3.4))
    ours, theirs = axes[0]
    budgets = sorted(int(b) for b in next(iter(results.values()))["accuracy"])
    places = range(len(budgets))
    methods = list(dict.fromkeys([*PAPER, *results]))
    for method, result in results.items():
        colour, shift = f"C{methods.index(method)}", 0.03 * (methods.index(method) - 1.5)
        values = [result["accuracy"][str(b)] for b in budgets]
        ours.plot(places, [100 * sum(v) / len(v) for v in values], color=colour, label=method)
        for place, budget in zip(places, budgets, strict=True):
            for value, (low, high) in zip(
                result["accuracy"][str(budget)], result["interval"][str(budget)], strict=True
            ):
                error = [[100 * (value - low)], [100 * (high - value)]]
                ours.errorbar(place + shift, 100 * value, error, fmt="o", color=colour, ms=3, lw=0.8)
    ours.set_xticks(list(places), [str(b) for b in budgets])
    ours.set_title("here", fontsize=10)
    steps = sorted(next(iter(PAPER.values())))
    for method, values in PAPER.items():
        theirs.plot(
            range(len(steps)), [values[b] for b in steps], "o-", ms=3, color=f"C{methods.index(method)}"
        )
    theirs.set_xticks(range(len(steps)), [str(b) for b in steps])
    theirs.set_title("arXiv 2601.21468, table 2", fontsize=10)
    for axis in (ours, theirs):
        axis.set_xlabel("visual tokens")
        axis.set_ylabel("accuracy, %")
        axis.set_ylim(0, 102)
    ours.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _folder(settings: AblationConfig, method: str, seed: int) -> Path:
    return Path(settings.dir) / f"{method.replace(' ', '_')}_seed{seed}"


def _result_file(settings: AblationConfig, method: str, seed: int) -> Path:
    return _folder(settings, method, seed) / "ablation.json"


if __name__ == "__main__":
    run_command(main)
