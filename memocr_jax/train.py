"""Train: `python -m memocr_jax.train --config configs/tiny.yaml [--rl.group-size 8 ...]`.

The same command continues a run from its newest complete checkpoint. On several hosts every process runs it
(`processes.launcher`).

This file is the loop over steps: sample, update, measure, validate, log, save. `rl/step.py` tells what a step
does, `rl/run.py` opens the parts of a run, `rl/resume.py` continues a run, and `rl/health.py` says when it
must stop.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, parse_command
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.signals import StopSignals, exit_status

if TYPE_CHECKING:
    from memocr_jax.rl.step import Rollout


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, _ = parse_command(argv, "python -m memocr_jax.train", "Train a memory agent with GRPO.")
    return train(config)


def train(config: Config) -> int:
    """Run or continue the training that `config` describes; returns the exit status.

    Raises UserError for what is wrong with the configuration, the data, the model or the run directory, and
    when a limit of `health` is exceeded; then the steps so far are saved.
    """
    # Heavy imports come after the check of the configuration, so that its errors come at once.
    import jax

    from memocr_jax.core.processes import joined
    from memocr_jax.rl import health, step_metrics
    from memocr_jax.rl.run import open_run
    from memocr_jax.rl.schedule import Schedule
    from memocr_jax.rl.step import rollout, update

    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(config.processes))
        run = stack.enter_context(open_run(config))
        learner = run.learner
        state, next_policy = run.start()

        def sample(policy: Any, step: int) -> Rollout:
            # With rl.staleness this runs in another thread, which needs a guard of its own.
            with jax.transfer_guard("disallow"):
                weights, questions = run.sampler_params(policy), run.questions(step)
                return rollout(run.agent, weights, questions, config.rl, config.sampling, step)

        schedule = Schedule(sample, config.rl.staleness, config.train.steps, next_policy)
        stack.enter_context(schedule)
        del next_policy  # the schedule owns it
        stop = stack.enter_context(StopSignals("stopping after this step, with a checkpoint"))
        stopped = None
        for step in range(state.step + 1, config.train.steps + 1):
            run.operations.begin(step)
            started = time.perf_counter()

            # Within a step every transfer between host and devices is explicit.
            with jax.transfer_guard("disallow"):
                # Sample memories, draw their pages, read them, and score the answers.
                sampled = schedule.take(learner.policy_params(state), step)

                # Update the policy.
                updated, minibatches = update(learner, state, sampled, run.minibatch_questions)
                state = updated.state

                # Measure over all processes, any of which may have received a signal.
                metrics, stopped = step_metrics.exchange(sampled, stop.received)
                metrics |= updated.metrics

                # Validate.
                if config.validation.every_steps and step % config.validation.every_steps == 0:
                    metrics |= run.validate(learner.policy_params(state))
            failure = health.failure(config, run.directory, metrics, updated, minibatches)

            # Log.
            stages, seconds = run.stopwatch.take(), time.perf_counter() - started
            timing = step_metrics.timing(metrics, seconds, stages, run.update_flops(minibatches))
            timing["time/programs"] = run.agent.engine.executables + learner.executables
            run.log(step, sampled, metrics, timing)
            run.operations.end(step, stages)

            # Save. The logs are in their place before the checkpoint is.
            last = step == config.train.steps or stopped is not None or failure is not None
            saves = last or step % config.checkpoint.every_steps == 0
            run.place.push(wait=saves)
            if saves:
                run.save(state, schedule.next_policy, metrics.get("validation/accuracy"))
            if failure is not None:
                raise UserError(failure)
            if stopped is not None:
                break
        run.finish(state.step, stopped)
    return exit_status(stopped)


if __name__ == "__main__":
    run_command(main)
