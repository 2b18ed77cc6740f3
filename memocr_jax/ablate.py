"""Ablate: `python -m memocr_jax.ablate --config configs/nano_ablation.yaml [--methods "full,no RL"]`.

Trains the same start with and without parts of the recipe, over seeds, and reads held-out questions at every
budget: the form of table 2 of arXiv 2601.21468. Every training and evaluation goes on where it was
interrupted, and what is finished is not done again. Leaves ablation.json, ablation.md and ablation.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memocr_jax.config import Config, from_tree, load_config, to_tree, validate
from memocr_jax.errors import UserError, nearest, run_command

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
    """What each method changes in the base, by section, such as {rl: {weight_aug_m: 0}}; {train: {steps: 0}}
    is the start itself."""

    def check(self, source: str) -> None:
        """Raise UserError for what cannot work."""
        if not self.methods or not self.seeds:
            raise UserError(f"{source}: methods and seeds must name at least one each")
        if self.starts and len(self.starts) != len(self.seeds):
            raise UserError(
                f"{source}: {len(self.starts)} starts for {len(self.seeds)} seeds; give one each, or none"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m memocr_jax.ablate", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--methods", help="only these, separated by commas")
    parser.add_argument("--seeds", help="only these, separated by commas")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    settings = load(args.config)
    methods = list(settings.methods) if args.methods is None else args.methods.split(",")
    for method in methods:
        if method not in settings.methods:
            raise UserError(f"--methods: no method {method!r}{nearest(method, list(settings.methods))}")
    seeds = settings.seeds if args.seeds is None else tuple(int(seed) for seed in args.seeds.split(","))
    for seed in seeds:
        if seed not in settings.seeds:
            raise UserError(f"--seeds: {seed} is not one of {list(settings.seeds)}")
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
    """Train and evaluate what is not finished; then write what is. Returns the exit status of a training that
    was stopped, else 0."""
    for seed in seeds:
        for method in methods:
            if _result_file(settings, method, seed).is_file():
                continue
            print(f"seed {seed}: {method}", flush=True)
            if status := _run(settings, method, seed):
                return status
            write_results(settings)
            _let_go()
    write_results(settings)
    print(f"results: {settings.dir}")
    return 0


def _let_go() -> None:
    """Free the programs of a run that is over. On a CPU each holds dozens of memory mappings, of which Linux
    gives a process 65,530; with none left XLA crashes."""
    import gc

    import jax

    gc.collect()
    jax.clear_caches()


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
    """What the memories of an evaluation in the synthetic world hold, and how they are read.

    Args:
        entries: its questions in order, as the journal has them.

    Returns `gold_in_heading`, the share of memories with every word of the gold evidence in level-1 headings;
    `facts_kept`, the share of the documents' facts that stand in a memory in their own words, in order;
    `memories`, their number; `read`, budget -> "heading" (the whole gold evidence is in headings) or "body"
    (all of it stands in the memory, not in headings) -> [right answers, answers].
    """
    from memocr_jax.answers import normalize
    from memocr_jax.data.synthetic import SyntheticWorld
    from memocr_jax.rl.gap_fill import visible_text
    from memocr_jax.rl.regions import in_heading

    world = SyntheticWorld(config.data.synthetic, config.data.seed, "validation", len(entries))
    heading = kept = facts = memories = 0
    read = {str(b): {"heading": [0, 0], "body": [0, 0]} for b in config.eval.budgets}
    mode = config.agent.memory_format
    # By number, for two documents may share a question and its evidence.
    for question, entry in zip(world, entries, strict=True):
        for sample, memory in enumerate(entry["memories"]):
            text = f" {normalize(visible_text(memory, mode))} "
            states = lambda sentence, text=text: f" {normalize(sentence)} " in text  # noqa: E731
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
            }
    if not results:
        return
    folder = Path(settings.dir)
    (folder / "ablation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "ablation.md").write_text(table(results), encoding="utf-8")
    plot(results, folder / "ablation.png")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: every seed's accuracy in percent, by method and budget, with the paper's own below."""
    budgets = list(next(iter(results.values()))["accuracy"])

    def percent(values: Sequence[float]) -> str:
        return " ".join(f"{100 * value:.1f}" for value in values)

    head = ["method", *(f"{b} tokens" for b in budgets), "gold evidence in heading", "facts kept"]
    rows = [
        [
            m,
            *(percent(r["accuracy"][b]) for b in budgets),
            percent(r["gold_in_heading"]),
            percent(r["facts_kept"]),
        ]
        for m, r in results.items()
    ]
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    theirs = sorted(next(iter(PAPER.values())), reverse=True)
    lines += [
        "",
        "Accuracy in percent, one number a seed. The paper's own (Qwen2.5-VL-7B, mean over four data sets):",
        "",
        _row(["method", *(f"{b} tokens" for b in theirs)]),
        _row(["---"] * (len(theirs) + 1)),
        *(_row([m, *(f"{values[b]:.1f}" for b in theirs)]) for m, values in PAPER.items()),
    ]
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy against budget, a line for each method through its seeds' mean, a dot for each seed."""
    from memocr_jax.evaluation.plots import figure_of

    figure, axes = figure_of(1, 1, (5.0, 3.4))
    axis = axes[0][0]
    budgets = sorted(int(b) for b in next(iter(results.values()))["accuracy"])
    places = range(len(budgets))
    for number, (method, result) in enumerate(results.items()):
        values = [result["accuracy"][str(b)] for b in budgets]
        mean = [100 * sum(v) / len(v) for v in values]
        axis.plot(places, mean, color=f"C{number}", label=method)
        for place, seeds in zip(places, values, strict=True):
            axis.plot([place] * len(seeds), [100 * v for v in seeds], "o", color=f"C{number}", markersize=3)
    axis.set_xticks(list(places), [str(b) for b in budgets])
    axis.set_xlabel("visual tokens")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 102)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _folder(settings: AblationConfig, method: str, seed: int) -> Path:
    return Path(settings.dir) / f"{method.replace(' ', '_')}_seed{seed}"


def _result_file(settings: AblationConfig, method: str, seed: int) -> Path:
    return _folder(settings, method, seed) / "ablation.json"


if __name__ == "__main__":
    run_command(main)
