"""Warm up: `python -m memocr_jax.warmup --config configs/nano_warmup.yaml [--run.seed 1 ...]`.

Supervised training before GRPO: lessons of the synthetic world (`warmup.stages`), or conversations of your
own with images (`warmup.data`). The same command continues a run from its newest complete checkpoint; the run
is one that `evaluate`, `ask` and `convert export` take.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memocr_jax.config import Config, parse_command
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.signals import StopSignals, exit_status
from memocr_jax.runs.run_place import is_remote
from memocr_jax.sft.stages import Stages


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, _ = parse_command(argv, "python -m memocr_jax.warmup", "Supervised training before GRPO.")
    return warm_up(config)


def warm_up(config: Config) -> int:
    """Run or continue the warm-up that `config` describes; returns the exit status.

    Raises UserError for what is wrong with the configuration, the data, the model or the run directory.
    """
    if config.train.trainable != "all":
        raise UserError(
            f"train.trainable is {config.train.trainable}: the warm-up trains every parameter; set it to all"
        )
    if is_remote(config.run.dir):
        raise UserError(f"run.dir is {config.run.dir}: the warm-up writes to folders only; name one")
    stages = Stages(config)

    # Heavy imports come after the configuration was checked, so that its errors come at once.
    from memocr_jax.agent.system import build_system, parameter_count
    from memocr_jax.runs import run_directory
    from memocr_jax.runs.checkpoint import Checkpoints, Meta, require_same_model
    from memocr_jax.sft import batches, prior, update
    from render import open_renderer, theme

    run_dir = Path(config.run.dir)
    system = build_system(config)
    moved = run_directory.prepare(run_dir, config.run.fresh)
    if moved:
        print(f"--run.fresh: what was in {run_dir} is now in {moved}")
    teacher = update.Teacher(config, system.model, system.mesh)
    params = system.initial_params()
    if config.warmup.from_nothing:
        params = prior.from_nothing(params, system.model)
    css = theme.remembered(config.render)

    with contextlib.ExitStack() as stack:
        renderer = None
        if config.warmup.stages:
            renderer = stack.enter_context(open_renderer(config.render, config.agent.memory_format))
        checkpoints = stack.enter_context(Checkpoints(run_dir, config.checkpoint.keep))
        source = batches.open_batches(config, system, renderer, teacher.packing)
        newest = checkpoints.latest()
        if newest is None:
            state, done = teacher.init(params), 0
        else:
            require_same_model(checkpoints.meta(newest), system.model, run_dir)
            abstract = teacher.abstract_state(params)._asdict()
            state, done = update.SftState(**checkpoints.restore(newest, **abstract)), newest
            print(f"continuing {run_dir} after update {done}")
        print(
            f"{config.model.path}: {parameter_count(params) / 1e6:,.2f}M parameters, "
            f"{stages.updates:,} updates",
            flush=True,
        )
        del params
        log = stack.enter_context(run_directory.RunLog(run_dir, config, done))
        made = batches.made_ahead(source.batches, done + 1, stages.updates)
        made = stack.enter_context(contextlib.closing(made))
        stop = stack.enter_context(StopSignals("stopping after this update, with a checkpoint"))
        clock = time.perf_counter()
        for number in range(done + 1, stages.updates + 1):
            # Learn.
            state, sums = teacher.update(state, next(made))

            # Measure and check.
            metrics = update.metrics_of(sums)
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                raise UserError(
                    f"update {number}: {bad[0]} is not finite; lower optimizer.learning_rate (it is "
                    f"{config.optimizer.learning_rate}) and continue from the last checkpoint"
                )
            last = number == stages.updates or stop.received is not None
            every = config.warmup.check_every
            if every and (number % every == 0 or last):
                metrics |= source.check(teacher, state.params)
            now = time.perf_counter()
            log.metrics(number, metrics, {"time/step_s": now - clock})
            _say(number, stages.updates, metrics, now - clock, every)
            clock = now

            # Save.
            if number % config.checkpoint.every_steps == 0 or last:
                meta = Meta(number, number, system.model.to_dict(), theme_css=css)
                checkpoints.save(meta, state._asdict())
            if stop.received is not None:
                print(f"stopped after update {number}; the same command continues")
                break
    print(f"results: {run_dir}")
    return exit_status(stop.received)


def _say(update: int, updates: int, metrics: dict[str, Any], seconds: float, every: int) -> None:
    """A line for every tenth update and every check."""
    checks = {k.removeprefix("check/"): v for k, v in metrics.items() if k.startswith("check/")}
    if checks:
        print("check: " + "  ".join(f"{k} {v:.2f}" for k, v in checks.items()), flush=True)
    elif update % 10 == 0:
        shown = "  ".join(
            f"{k.removeprefix('warmup/')} {v:.3f}" for k, v in metrics.items() if k.endswith("loss")
        )
        left = (updates - update) * seconds / 60
        print(f"update {update:>5}/{updates}  {shown}  {seconds:.2f} s  left {left:.0f} min", flush=True)


if __name__ == "__main__":
    run_command(main)
