"""The cost of a sweep over budgets: `python -m benchmarks.evaluate [--questions 8] [--out FILE]`.

The same questions are evaluated at one budget (1,024) and at eight (1,024 ... 8), warm and in turns, with
drafting, drawing in Chromium and reading. Documents have about 10,000 tokens in two chunks, the shortest of
the paper's lengths. That is the hardest case, because reading matters less when drafts take longer. Pages
have hundreds of tokens, so that the larger budgets show different views too (`views_per_question` says how
many; equal views are read once).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from render.bounds import PositiveInt
from render.errors import run_command
from render.options import parse_options

BUDGETS = (1024, 512, 256, 128, 64, 32, 16, 8)
TARGET = 1.5
"""The most that the sweep may take, as a multiple of the largest budget alone."""


@dataclasses.dataclass(frozen=True)
class Options:
    model: str = "configs/models/tiny"
    """Its config.json gives the shape."""
    questions: PositiveInt = 4
    repeats: PositiveInt = 3
    draft_tokens: PositiveInt = 512
    """Length of every memory."""
    read_tokens: PositiveInt = 64
    """Length of every answer."""
    out: Path | None = None
    """Write the result there as JSON, too."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_options(Options, argv, "python -m benchmarks.evaluate", description=__doc__)
    result = measure(args.model, args.questions, args.repeats, args.draft_tokens, args.read_tokens)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


def measure(model: str, questions: int, repeats: int, draft_tokens: int, read_tokens: int) -> dict[str, Any]:
    """Seconds of both sides (medians) and their ratio."""
    import jax

    from benchmarks.timing import alternate, timed
    from memocr_jax.agent.system import build_system
    from memocr_jax.config import AgentConfig, Config, EngineConfig, EvalConfig, ModelConfig
    from memocr_jax.config.data import DataConfig, SyntheticConfig
    from memocr_jax.data.loader import load_examples
    from memocr_jax.evaluation.methods import evaluate_examples
    from render.settings import RenderSettings

    world = SyntheticConfig(facts=60, distractors=20, filler=900, chunks=2)
    config = Config(
        model=ModelConfig(path=model, init="random", dtype="float32"),
        data=DataConfig(chunk_tokens=8192, max_chunks=0, validation_questions=questions, synthetic=world),
        agent=AgentConfig(draft_max_new_tokens=draft_tokens, read_max_new_tokens=read_tokens),
        engine=EngineConfig(groups=16),
        # Drawn anew every time; large, so that every budget shows another view.
        render=RenderSettings(cache_mb=0, workers=1, scale=2.0, shrink=False),
    )
    system = build_system(config)
    examples = load_examples(config.data, system.tokenizer, "validation")
    examples = [examples[i] for i in range(questions)]
    params = system.sampler_params(system.initial_params())
    results: dict[int, list[dict[str, Any]]] = {}
    with system.agent() as agent:

        def run(budgets: tuple[int, ...]):
            settings = dataclasses.replace(EvalConfig(), budgets=budgets, wave_questions=questions)

            def once() -> None:
                results[len(budgets)] = evaluate_examples(agent, params, examples, settings)

            return lambda: timed(once)

        one, sweep = alternate(run(BUDGETS[:1]), run(BUDGETS), repeats)
    views = {(r["id"], r["image_tokens"]) for r in results[len(BUDGETS)]}
    return {
        "budgets": list(BUDGETS),
        "one_budget_s": one.wall,
        "sweep_s": sweep.wall,
        "ratio": sweep.wall / one.wall,
        "processor_ratio": sweep.processor / one.processor,
        "target": TARGET,
        "questions": questions,
        "repeats": repeats,
        "document_tokens": sum(e.document_tokens for e in examples) / questions,
        "draft_tokens": draft_tokens,
        "read_tokens": read_tokens,
        "views_per_question": len(views) / questions,
        "model": model,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
        },
    }


if __name__ == "__main__":
    run_command(main)
