"""Train: `python -m memocr_jax.train --config configs/tiny.yaml [--rl.group-size 8 ...]`.

The same command continues a run from its newest complete checkpoint. On several hosts every process runs it
(`processes.launcher`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, parse_command, to_tree
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.signals import StopSignals, exit_status

if TYPE_CHECKING:
    from memocr_jax.agent.agent import Agent
    from memocr_jax.agent.system import System
    from memocr_jax.data.loader import Examples
    from memocr_jax.rl.step import Rollout
    from memocr_jax.rl.update import Learner, TrainState, Update
    from memocr_jax.runs.checkpoint import Checkpoints, Meta


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, _ = parse_command(argv, "python -m memocr_jax.train", "Train a memory agent with GRPO.")
    return train(config)


def train(config: Config) -> int:
    """Run or continue the training that `config` describes; returns the exit status.

    Raises UserError for what is wrong with the configuration, the data, the model or the run directory, and
    when training goes wrong for good (health.*); then what was done so far is saved.
    """
    # Heavy imports come after the configuration was checked, so that its errors come at once.
    from memocr_jax.core.processes import joined

    with joined(config.processes):
        return _train(config)


def _train(config: Config) -> int:
    import jax

    from memocr_jax.agent.system import build_system, parameter_count
    from memocr_jax.core.metrics import Stopwatch
    from memocr_jax.core.processes import code_version, is_main, require_same, together
    from memocr_jax.data.loader import QuestionOrder, load_examples
    from memocr_jax.report import write_about, write_report
    from memocr_jax.rl.schedule import Schedule
    from memocr_jax.rl.step import rollout, update
    from memocr_jax.rl.step_metrics import update_flops
    from memocr_jax.rl.trajectories import TrajectoryLog
    from memocr_jax.rl.update import build_learner
    from memocr_jax.runs import run_directory
    from memocr_jax.runs.checkpoint import Checkpoints
    from memocr_jax.runs.compiled import use_compilation_cache
    from memocr_jax.runs.operations import Operations
    from memocr_jax.runs.progress import TrainProgress
    from memocr_jax.runs.run_place import RunPlace, is_remote

    use_compilation_cache(config.run.compiled_dir)
    system = together(lambda: build_system(config))
    examples = together(lambda: load_examples(config.data, system.tokenizer, "train"))
    together(lambda: _require_equal_shares(config))
    if jax.process_count() > 1:
        require_same(code=code_version(), configuration=_alike(config), data=_fingerprint(examples))
    order = QuestionOrder(len(examples), config.rl.questions_per_step, config.run.seed)
    stopwatch = Stopwatch()

    with contextlib.ExitStack() as stack:
        run, ours = config.run, (jax.process_index(), jax.process_count())
        place = together(lambda: stack.enter_context(RunPlace(run.dir, run.staging, run.fresh, *ours)))
        run_dir = place.directory
        moved = together(lambda: run_directory.prepare(run_dir, run.fresh) if is_main() else None)
        operations = stack.enter_context(Operations(config, run_dir))
        progress = stack.enter_context(TrainProgress(config.train.steps, quiet=not is_main()))

        def stage(name: str, done: int, total: int) -> None:
            operations.beat()
            progress.stage(name, done, total)

        checkpoints = stack.enter_context(
            Checkpoints(place.checkpoints, config.checkpoint.keep, config.checkpoint.keep_best)
        )
        newest = checkpoints.latest()
        meta = None if newest is None else checkpoints.meta(newest)
        render = together(lambda: _remembered_theme(config, meta, progress.say))
        agent = together(lambda: stack.enter_context(system.agent(stopwatch, stage, render)))

        # What sampling needs is known before any weight is loaded, and so is whether it fits.
        limits = agent.prompt_limits(config.rl.group_size, config.data.chunk_tokens, render)
        fits = together(lambda: [agent.engine.fits(kind) for kind in limits])

        # The state: fresh, or that of the newest complete checkpoint.
        with operations.goodput.stage("restore"):
            initial = system.initial_params()
            learner = build_learner(system, initial, stopwatch)
            if meta is None:
                state, next_policy = learner.init(initial), None
            else:
                state, next_policy = _restored(
                    config, system, learner, checkpoints, meta, len(examples), initial
                )
        parameters = parameter_count(initial)
        del initial  # the reference policy, where one is needed, is the learner's
        progress.start(config, run_dir, parameters, examples, state.step, moved)
        if is_remote(run.dir):
            progress.say(f"run.dir {run.dir}: worked on in {run_dir}")
        progress.say(f"attention: {config.model.attention}; " + "; ".join(map(str, fits)))
        if config.engine.warm_up and state.step < config.train.steps:
            agent.engine.warm_up(system.sampler_params(learner.policy_params(state)), limits)
        log = stack.enter_context(run_directory.RunLog(run_dir, config, state.step, quiet=not is_main()))
        trajectories = None
        if is_main():
            trajectories = TrajectoryLog(run_dir, config.log, system.tokenizer, state.step)
        if is_main():
            write_about(run_dir, model_parameters=parameters)
        validate = _Validation(config, system, agent)

        def sample(policy: Any, step: int) -> Rollout:
            with stopwatch("reshard"):
                policy = system.sampler_params(policy)
            questions = [examples[i] for i in _own_questions(order[step - 1].tolist(), config)]
            return rollout(agent, policy, questions, config.rl, config.sampling, step)

        schedule = Schedule(sample, config.rl.staleness, config.train.steps, next_policy)
        stack.callback(schedule.close)
        with StopSignals("stopping after this step, with a checkpoint") as stop:
            stopped = None
            while state.step < config.train.steps and stopped is None:
                step = state.step + 1
                operations.begin(step)
                started = time.perf_counter()
                result = schedule.take(learner.policy_params(state), step)
                updated, minibatches = update(learner, state, result, _own_minibatch(config))
                state = updated.state
                metrics, stopped = _exchange(result, stop.received)
                metrics |= updated.metrics
                if config.validation.every_steps and step % config.validation.every_steps == 0:
                    metrics |= validate(learner.policy_params(state))
                failure = _failure(config, run_dir, metrics, updated, minibatches)
                flops = update_flops(minibatches, system.model, config.train.trainable)
                stages = stopwatch.take()
                timing = _timing(metrics, time.perf_counter() - started, stages, flops)
                timing["time/programs"] = agent.engine.executables + learner.executables
                log.metrics(step, metrics, timing)
                if trajectories is not None:
                    trajectories.write(step, result)
                progress.step(step, metrics, timing)
                operations.end(step, stages)
                last = step == config.train.steps or stopped is not None or failure is not None
                saves = step % config.checkpoint.every_steps == 0 or last
                place.push(wait=saves)  # a run that goes on from this checkpoint finds its lines
                if saves:
                    items = learner.checkpoint_items(state)
                    if schedule.next_policy is not None:
                        items["next_policy"] = schedule.next_policy
                    score = metrics.get("validation/accuracy")
                    with operations.goodput.stage("checkpoint"):
                        checkpoints.save(
                            _meta(config, system, learner, state, len(examples), render), items, score
                        )
                if failure is not None:
                    raise UserError(failure)
        if is_main():
            report = write_report(run_dir)
            progress.finish(run_dir, report, state.step, stopped)
    return exit_status(stopped)


def _alike(config: Config) -> dict[str, Any]:
    """What must be the same on every process: everything but which of them it is."""
    tree = to_tree(config)
    del tree["processes"]["index"]
    return tree


def _fingerprint(examples: Examples) -> list[Any]:
    """Tells one set of questions from another by some of them."""
    some = range(0, len(examples), -(-len(examples) // 16))
    return [len(examples), *((examples[i].example_id, examples[i].document_tokens) for i in some)]


def _require_equal_shares(config: Config) -> None:
    import jax

    for name, value in {
        "rl.minibatch_questions": config.rl.minibatch_questions,
        "train.micro_batch_rows": config.train.micro_batch_rows,
    }.items():
        if value % jax.process_count():
            raise UserError(
                f"{name} is {value}, which does not divide over {jax.process_count()} processes; the nearest "
                f"that does is {max(1, round(value / jax.process_count())) * jax.process_count()}"
            )


def _own_questions(indices: Sequence[int], config: Config) -> list[int]:
    """The questions of a step that this process samples."""
    import jax

    from memocr_jax.core.processes import own_share

    part = config.rl.minibatch_questions
    return own_share(indices, part, jax.process_index(), jax.process_count())


def _own_minibatch(config: Config) -> int:
    import jax

    return config.rl.minibatch_questions // jax.process_count()


def _remembered_theme(config: Config, meta: Meta | None, say: Callable[[str], None]) -> Any:
    """The settings of the renderer with the theme's text: the run goes on with the one it began with."""
    from render.theme import theme_css

    css = theme_css(config.render)
    if meta is not None and meta.theme_css and meta.theme_css != css:
        say(
            f"render.theme {config.render.theme}: changed since; the run goes on with the theme it began with"
        )
        css = meta.theme_css
    return dataclasses.replace(config.render, theme_css=css)


def _order(config: Config, questions: int) -> dict[str, Any]:
    return {
        "run.seed": config.run.seed,
        "number of questions": questions,
        "rl.questions_per_step": config.rl.questions_per_step,
    }


def _meta(
    config: Config, system: System, learner: Learner, state: TrainState, questions: int, render: Any
) -> Meta:
    from memocr_jax.runs.checkpoint import Meta

    return Meta(
        state.step,
        state.updates,
        system.model.to_dict(),
        theme_css=render.theme_css,
        order=_order(config, questions),
        skipped_in_row=state.skipped_in_row,
        base=learner.base,
    )


def _restored(
    config: Config,
    system: System,
    learner: Learner,
    checkpoints: Checkpoints,
    meta: Meta,
    questions: int,
    initial: Any,
) -> tuple[TrainState, Any]:
    """The state of a checkpoint, and (rl.staleness 1) the weights that its next step is sampled from."""
    from memocr_jax.core.sharding import abstract_like
    from memocr_jax.runs.checkpoint import require_same_base, require_same_model

    require_same_model(meta, system.model, config.run.dir)
    require_same_base(meta, learner.base, config)
    for name, now in _order(config, questions).items():
        if meta.order and meta.order[name] != now:
            raise UserError(
                f"{config.run.dir}: its checkpoint was made with {name} {meta.order[name]}, now it is {now}, "
                "which changes the order of questions; set it back, or use another --run.dir or --run.fresh"
            )
    items = learner.abstract_items()
    stale = config.rl.staleness and meta.step
    if stale and not checkpoints.has(meta.step, "next_policy"):
        raise UserError(
            f"{config.run.dir}: its checkpoint was made with rl.staleness 0 and lacks the weights to sample "
            "from; set it back, or use another --run.dir or --run.fresh"
        )
    if stale:
        items["next_policy"] = abstract_like(initial)
    restored = checkpoints.restore(meta.step, **items)
    next_policy = restored.pop("next_policy", None)
    state = learner.restored(restored, step=meta.step, updates=meta.updates)
    state.skipped_in_row = meta.skipped_in_row
    return state, next_policy


def _exchange(result: Rollout, stop: int | None) -> tuple[dict[str, float | None], int | None]:
    """The rollout's metrics over all processes, and the signal that any of them received."""
    from memocr_jax.core.metrics import Metrics
    from memocr_jax.core.processes import gather
    from memocr_jax.rl.step_metrics import rollout_metrics

    everyone = gather({"metrics": rollout_metrics(result).parts(), "stop": stop})
    metrics = Metrics.merged(theirs["metrics"] for theirs in everyone).as_dict()
    received = [theirs["stop"] for theirs in everyone if theirs["stop"] is not None]
    return metrics, received[0] if received else None


def _failure(
    config: Config, run_dir: Path, metrics: dict[str, Any], updated: Update, minibatches: Sequence[Any]
) -> str | None:
    """Why the run must stop, if it must. All processes see the same numbers."""
    import jax

    from memocr_jax.rl.pack import save_minibatch

    health = config.health
    if health.max_skipped_updates and updated.state.skipped_in_row >= health.max_skipped_updates:
        path = run_dir / "failed" / f"step_{updated.state.step:06d}_process_{jax.process_index()}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_minibatch(path, minibatches[updated.skipped[-1]])
        return (
            f"health.max_skipped_updates: {updated.state.skipped_in_row} updates in a row had a loss or a "
            f"gradient that is not finite; the last batch is in {path}, the weights before them in the "
            "checkpoint; lower optimizer.learning_rate or use model.dtype float32"
        )
    memories = config.rl.questions_per_step * config.rl.group_size
    if metrics["render/failed"] > health.max_failed_pages * memories:
        return (
            f"health.max_failed_pages: {metrics['render/failed']:.0f} of {memories} pages could not be drawn "
            f"(allowed: {health.max_failed_pages:.0%}); see the pages' status in {run_dir / 'trajectories'}"
        )
    return None


def _timing(
    metrics: dict[str, Any],
    step_s: float,
    stages: dict[str, float],
    flops: float,
) -> dict[str, float | None]:
    """What depends on the clock: seconds by stage (of process 0), and what they make of the step's work.

    `flops` are those of this process's part of the update.
    """
    import jax

    from memocr_jax.models.flops import peak_flops

    stages = {"render_exposed": 0.0, **stages}
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        **{f"time/{name}_s": value for name, value in sorted(stages.items()) if name != "render_exposed"},
        "time/step_s": step_s,
        "time/tokens_per_s": metrics["rollout/sampled_tokens"] / step_s,
        "render/exposed_s": stages["render_exposed"],
        "update/mfu": flops / (peak * jax.local_device_count() * stages["update"]) if peak else None,
    }


class _Validation:
    """Reads validation questions at the budgets of `validation`, with the code of `evaluate`."""

    def __init__(self, config: Config, system: System, agent: Agent):
        self._config, self._system, self._agent = config, system, agent
        self._examples: list[Any] | None = None

    def __call__(self, policy: Any) -> dict[str, float]:
        """Accuracy over all processes' questions, by budget and on average; failures count as wrong."""
        from memocr_jax.config import EvalConfig
        from memocr_jax.core.metrics import Metrics
        from memocr_jax.core.processes import gather
        from memocr_jax.evaluation.methods import evaluate_examples

        settings = self._config.validation
        if self._examples is None:
            self._examples = self._own_examples()
        evaluation = EvalConfig(
            budgets=settings.budgets,
            methods=("visual memory",),
            samples=settings.samples,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        stopwatch = self._agent.stopwatch
        with stopwatch("validation"):
            agent = dataclasses.replace(
                self._agent, stopwatch=type(stopwatch)()
            )  # its stages are not the step's
            params = self._system.sampler_params(policy)
            results = evaluate_examples(agent, params, self._examples, evaluation)
            metrics = Metrics()
            for result in results:
                metrics.mean("validation/accuracy", result["em"])
                metrics.mean(f"validation/accuracy_{result['budget']}", result["em"])
                metrics.count("validation/failed", result["image_tokens"] is None)
            return Metrics.merged(gather(metrics.parts())).as_dict()

    def _own_examples(self) -> list[Any]:
        import jax

        from memocr_jax.data.loader import load_examples

        config = self._config
        examples = load_examples(config.data, self._system.tokenizer, "validation")
        count = min(config.validation.questions or len(examples), len(examples))
        return [examples[i] for i in range(jax.process_index(), count, jax.process_count())]


if __name__ == "__main__":
    run_command(main)
