"""Part `stages` of `python -m benchmarks.rl`: seconds of each stage of a step, and of waiting for pages."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from memocr_jax.config import Config, load_config
from memocr_jax.core.errors import UserError

CONFIG = Path("configs") / "tiny.yaml"
WARM_UP = 2
"""The first steps are not counted, because they compile."""


def stage_results(args: Any) -> dict[str, Any]:
    """Medians over steps of the main job with its real Chromium, everything else as in training."""
    from memocr_jax.agent.system import build_system
    from memocr_jax.core.metrics import Stopwatch
    from memocr_jax.data.loader import load_examples
    from memocr_jax.data.pipeline import ExampleStream
    from memocr_jax.rl.step import rollout, update
    from memocr_jax.rl.update import Learner

    if not CONFIG.is_file():
        raise UserError(f"{CONFIG} is not here; run this benchmark from the repository's root")
    config = _config()
    system = build_system(config)
    examples = load_examples(config.data, system.tokenizer, "train")
    stopwatch = Stopwatch()
    initial = system.initial_params()
    learner = Learner(config, system.model, system.mesh, initial, stopwatch)
    state = learner.init(initial)
    steps: list[dict[str, float]] = []
    with system.agent(stopwatch) as agent, ExampleStream.of_run(config, examples) as stream:
        for step in range(1, WARM_UP + args.repeats + 1):
            started = time.perf_counter()
            with stopwatch("reshard"):
                policy = system.sampler_params(learner.policy_params(state))
            result = rollout(agent, policy, stream.take(step), config.rl, config.sampling, step)
            state = update(learner, state, result, config.rl.minibatch_questions)[0].state
            steps.append({**stopwatch.take(), "step": time.perf_counter() - started})
    steps = steps[WARM_UP:]
    stages = {name: statistics.median(s.get(name, 0.0) for s in steps) for name in steps[0]}
    return {
        "stages_s": {
            **stages,
            "render_exposed_share": stages["render_exposed"] / stages["step"],
            "config": str(CONFIG),
            "questions": config.rl.questions_per_step,
            "group_size": config.rl.group_size,
            "waves": config.rl.waves,
            "steps": len(steps),
        }
    }


def _config() -> Config:
    config = load_config(CONFIG)
    run = dataclasses.replace(config.run, dir=tempfile.gettempdir())
    return dataclasses.replace(config, run=run)
