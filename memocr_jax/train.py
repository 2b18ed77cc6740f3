"""Train: `python -m memocr_jax.train --config configs/tiny.yaml [--rl.group-size 8 ...]`.

The same command continues a run from its newest complete checkpoint.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from memocr_jax.config import Config, parse_command
from memocr_jax.errors import run_command

PREEMPTED = 75
"""Exit status after SIGTERM: saved, start the same command again (EX_TEMPFAIL)."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, _ = parse_command(argv, "python -m memocr_jax.train", "Train a memory agent with GRPO.")
    return train(config)


def train(config: Config) -> int:
    """Run or continue the training that `config` describes; returns the exit status."""
    # Heavy imports come after the configuration was checked, so that its errors come at once.
    from memocr_jax import run_directory
    from memocr_jax.checkpoint import Checkpoints, Meta, abstract_like, require_same_model
    from memocr_jax.data.loader import QuestionOrder, load_examples
    from memocr_jax.metrics import Stopwatch
    from memocr_jax.progress import TrainProgress
    from memocr_jax.report import write_about, write_report
    from memocr_jax.rl.step import train_step
    from memocr_jax.rl.step_metrics import rollout_metrics
    from memocr_jax.rl.update import TrainState
    from memocr_jax.system import build_learner, build_system, parameter_count

    run_dir = Path(config.run.dir)
    system = build_system(config)
    examples = load_examples(config.data, system.tokenizer, "train")
    order = QuestionOrder(len(examples), config.rl.questions_per_step, config.run.seed)
    moved = run_directory.prepare(run_dir, config.run.fresh)
    stopwatch = Stopwatch()

    with (
        TrainProgress(config.train.steps) as progress,
        Checkpoints(run_dir, config.checkpoint.keep) as checkpoints,
        system.agent(stopwatch, progress.stage) as agent,
    ):
        # The state: fresh, or that of the newest complete checkpoint.
        initial = system.initial_params()
        learner = build_learner(system, initial, stopwatch)
        newest = checkpoints.latest()
        if newest is None:
            state = learner.init(initial)
        else:
            meta = checkpoints.meta(newest)
            require_same_model(meta, system.model, run_dir)
            target = {"params": abstract_like(initial), "opt_state": learner.abstract_opt_state(initial)}
            state = TrainState(**checkpoints.restore(newest, **target), step=meta.step, updates=meta.updates)
        parameters = parameter_count(initial)
        del initial  # the reference policy, where one is needed, is the learner's
        progress.start(config, run_dir, parameters, examples, state.step, moved)
        log = run_directory.RunLog(run_dir, config, system.tokenizer, state.step)
        write_about(run_dir, model_parameters=parameters)

        with _StopSignals() as stop:
            while state.step < config.train.steps and not stop.received:
                step = state.step + 1
                started = time.perf_counter()
                batch = [examples[i] for i in order[step - 1]]
                tokens_before = agent.engine.sampled_tokens
                state, result, update = train_step(
                    agent, learner, state, batch, config.rl, config.sampling, step
                )
                seconds = time.perf_counter() - started
                sampled = agent.engine.sampled_tokens - tokens_before
                metrics = {
                    **rollout_metrics(result),
                    **update,
                    "rollout/sampled_tokens": sampled,
                    **{f"time/{name}_s": value for name, value in sorted(stopwatch.take().items())},
                    "time/step_s": seconds,
                    "time/tokens_per_s": sampled / seconds,
                }
                log.metrics(step, metrics)
                log.trajectories(step, result)
                progress.step(step, metrics)
                if step % config.checkpoint.every_steps == 0 or step == config.train.steps or stop.received:
                    meta = Meta(step, state.updates, system.model.to_dict())
                    checkpoints.save(step, state.params, state.opt_state, meta)
        log.close()
        report = write_report(run_dir)
        progress.finish(run_dir, report, state.step, stop.received)
    return {None: 0, signal.SIGINT: 130, signal.SIGTERM: PREEMPTED}[stop.received]


class _StopSignals:
    """Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint; a second one at once."""

    received: int | None = None

    def __enter__(self) -> _StopSignals:
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("\nstopping after this step, with a checkpoint (once more: at once)", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
