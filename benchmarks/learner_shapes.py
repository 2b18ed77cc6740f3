"""How many programs the learner needs, and how full its rows are: `python -m benchmarks.learner_shapes`.

The packer lays out a step of the 7B recipe for 1, 8 and 64 processes, with modelled lengths and without a
model: documents of 24,000 to 32,000 tokens in chunks of 5,000, completions of lognormal length. `programs`
are the different shapes of micro-batches so far. `useful` is the share of slots that hold a token once every
process runs the shapes of all. `planned` is what rows of a few fixed shapes would give (`rl/rows.py`), where
turns may go to another process that has room for them; the learner does not use them yet.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memocr_jax.agent.agent import most_view_windows
from memocr_jax.config import Config, load_config
from memocr_jax.core.types import Completion, Stop, Turn, TurnKind
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.images import num_windows
from memocr_jax.rl.pack import Packing, WeightedTurn, micro_batches
from memocr_jax.rl.rows import GroupSize, RowShape, plan_rows
from render.bounds import PositiveFloat, PositiveInt
from render.errors import run_command
from render.options import parse_options
from render.settings import TOKEN_PX
from render.views import token_grid

RECIPES = {1: "qwen25vl_7b_lora_80gb", 8: "qwen25vl_7b_h100x64", 64: "qwen25vl_7b_v5e256"}
"""The 7B recipe of so many processes."""
PLANNED_TOKENS = {1: (24576, 10240), 8: (24576, 10240), 64: (16384, 10240)}
"""Lengths of planned rows: that of the recipe, and the smallest that holds the longest turn."""
SAMPLED_SHARE = 5 / 8
"""Part of a planned row's slots that may be sampled tokens."""
VIEW_EVERY = 8192
"""A planned row has a vision row for so many of its slots."""


@dataclasses.dataclass(frozen=True)
class Options:
    processes: tuple[PositiveInt, ...] = (1, 8, 64)
    """Numbers of processes: 1, 8 or 64."""
    sigma: PositiveFloat = 0.5
    """Standard deviation of the logarithm of a completion's length."""
    mean: PositiveFloat = 1.0
    """Factor of the completions' mean length."""
    steps: PositiveInt = 2
    """Steps whose programs are counted."""
    seed: int = 0
    out: Path | None = None
    """Write the result there as JSON, too."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_options(Options, argv, "python -m benchmarks.learner_shapes", description=__doc__)
    result = {str(n): measure(n, args) for n in args.processes}
    settings = {"sigma": args.sigma, "mean": args.mean, "steps": args.steps, "seed": args.seed}
    text = json.dumps({"settings": settings, "processes": result}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


def measure(processes: int, args: Options) -> dict[str, Any]:
    """Programs and useful slots of today's rows and of planned ones."""
    config = load_config(f"configs/{RECIPES[processes]}.yaml")
    model = Qwen25VLConfig.from_file(config.model.shapes)
    rows = config.train.micro_batch_rows // processes
    packing = dataclasses.replace(Packing.of(config, model), rows=rows)
    windows = most_view_windows(config.render, config.agent.budget_tokens, model.vision)
    shapes = [
        RowShape(n, int(n * SAMPLED_SHARE), n // 64, max(1, n // VIEW_EVERY), windows)
        for n in PLANNED_TOKENS[processes]
    ]
    rng = np.random.default_rng(args.seed)
    seen, slots, valid, planned = set(), 0, 0, Counter()
    for _ in range(args.steps):
        for _ in range(config.rl.questions_per_step // config.rl.minibatch_questions):
            most: Counter[Any] = Counter()
            sizes = []
            for process in range(processes):
                share = config.rl.minibatch_questions // processes
                turns = [t for q in range(share) for t in question(rng, q, config, args)]
                arranged = micro_batches(turns, packing)
                most |= Counter(shape for shape, _ in arranged)
                valid += sum(row_tokens(row) for _, batch in arranged for row in batch)
                sizes += [group_size(turns_of, model, process) for turns_of in by_prefix(turns)]
            seen |= set(most)
            slots += processes * rows * sum(shape.length * n for shape, n in most.items())
            plan = plan_rows(sizes, shapes, rows, processes)
            planned["slots"] += sum(micro.shape.tokens * rows * processes for micro in plan)
            for micro in plan:
                for process, mine in enumerate(micro.rows):
                    for part in (part for row in mine for part in row):
                        size = sizes[part.group]
                        tokens = size.prefix + sum(size.siblings[k] for k in part.siblings)
                        planned["valid"] += tokens
                        planned["moved"] += tokens * (size.owner != process)
            # What would be useful if no prefix had to be copied into a second row.
            planned["once"] += sum(size.prefix + sum(size.siblings) for size in sizes)
    return {
        "recipe": RECIPES[processes],
        "programs": len(seen),
        "useful": round(valid / slots, 3),
        "planned": {
            "programs": 2 * len(shapes) + 2,
            "useful": round(planned["valid"] / planned["slots"], 3),
            "useful_without_copies": round(planned["once"] / planned["slots"], 3),
            "moved": round(planned["moved"] / planned["valid"], 3),
        },
    }


def question(rng: np.random.Generator, q: int, config: Config, args: Options) -> list[WeightedTurn]:
    """The turns of a question: its drafts, and the three readings of every memory's page."""
    agent, group = config.agent, config.rl.group_size

    def length(mean: float) -> int:
        drawn = rng.lognormal(np.log(mean * args.mean), args.sigma)
        return int(np.clip(drawn, 16, agent.draft_max_new_tokens))

    def turn(g: int, kind: TurnKind, prefix: np.ndarray, own: int, new: int, view: np.ndarray | None = None):
        completion = Completion(np.zeros(new, np.int32), np.zeros(new, np.float32), Stop.EOS)
        return WeightedTurn(Turn(q, g, kind, prefix, np.zeros(own, np.int32), view, completion), 1.0)

    def page(budget: int, height: int) -> np.ndarray:
        grid = token_grid(height, config.render.width_px, budget)
        view = np.zeros((grid[0] * TOKEN_PX, grid[1] * TOKEN_PX, 3), np.uint8)
        view.reshape(-1)[:8] = np.frombuffer(rng.bytes(8), np.uint8)  # no two pages are the same
        return view

    turns, chunk = [], config.data.chunk_tokens
    total, mean = int(rng.integers(24_000, 32_000)), rng.uniform(500, 1200)
    memories = [3] * group
    for tokens in [chunk] * (total // chunk) + [total % chunk]:
        prefix = rng.integers(0, 1000, tokens + 150 + int(rng.integers(10, 40)), dtype=np.int32)
        new = [length(mean) for _ in range(group)]
        turns += [turn(g, TurnKind.DRAFT, prefix, memories[g] + 80, new[g]) for g in range(group)]
        memories = new
    for g, memory in enumerate(memories):
        height = min(200 + int(1.3 * memory), config.render.max_height_px)
        full, low = page(agent.budget_tokens, height), page(agent.budget_tokens // 16, height)
        for view, kinds in (
            (full, {TurnKind.QA: 60, TurnKind.GAP_FILL: 160}),
            (low, {TurnKind.QA_LOWRES: 60}),
        ):
            prefix = np.zeros(30 + view.shape[0] * view.shape[1] // TOKEN_PX**2, np.int32)
            turns += [turn(g, kind, prefix, own, length(120), view) for kind, own in kinds.items()]
    return turns


def by_prefix(turns: Sequence[WeightedTurn]) -> list[list[WeightedTurn]]:
    """Turns that share a prefix and a page; here these are the same objects."""
    groups: dict[tuple[int, int], list[WeightedTurn]] = {}
    for t in turns:
        groups.setdefault((id(t.turn.prefix), id(t.turn.image)), []).append(t)
    return list(groups.values())


def group_size(group: Sequence[WeightedTurn], model: Qwen25VLConfig, owner: int) -> GroupSize:
    first = group[0].turn
    windows = 0 if first.image is None else num_windows(*first.image.shape[:2], model.vision)
    sampled = tuple(len(t.turn.completion.tokens) for t in group)
    siblings = tuple(len(t.turn.suffix) + n for t, n in zip(group, sampled, strict=True))
    return GroupSize(len(first.prefix), siblings, sampled, windows, owner)


def row_tokens(row: Sequence[WeightedTurn]) -> int:
    """Tokens of a row: the prefix once, and each turn's own."""
    own = sum(len(t.turn.suffix) + len(t.turn.completion.tokens) for t in row)
    return len(row[0].turn.prefix) + own


if __name__ == "__main__":
    run_command(main)
