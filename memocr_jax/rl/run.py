"""A run that is open: everything that training is made of, ready for the next step (`train.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from flax import nnx

from memocr_jax.agent.agent import Agent
from memocr_jax.agent.system import System, build_system, parameter_count
from memocr_jax.config import Config
from memocr_jax.core.metrics import Stopwatch
from memocr_jax.core.processes import is_main, together
from memocr_jax.core.types import QaExample
from memocr_jax.data.loader import load_examples
from memocr_jax.data.pipeline import ExampleStream
from memocr_jax.evaluation.validation import Validation
from memocr_jax.report import write_about, write_report
from memocr_jax.rl import health, resume, step_metrics
from memocr_jax.rl.pack import MiniBatch
from memocr_jax.rl.step import Rollout
from memocr_jax.rl.trajectories import TrajectoryLog
from memocr_jax.rl.update import Learner, TrainState
from memocr_jax.runs import run_directory
from memocr_jax.runs.checkpoint import Checkpoints
from memocr_jax.runs.compiled import use_compilation_cache
from memocr_jax.runs.operations import Operations
from memocr_jax.runs.progress import TrainProgress
from memocr_jax.runs.run_place import RunPlace, is_remote
from render.settings import RenderSettings


@dataclasses.dataclass
class Run:
    """The parts of an open run, in one process of it."""

    config: Config
    directory: Path
    """The folder on this machine that everything is written to."""
    system: System
    agent: Agent
    learner: Learner
    validate: Validation
    operations: Operations
    place: RunPlace
    stopwatch: Stopwatch
    _stream: ExampleStream
    _render: RenderSettings
    _checkpoints: Checkpoints
    _progress: TrainProgress
    _metrics: run_directory.RunLog
    _trajectories: TrajectoryLog
    _start: tuple[TrainState, nnx.State | None] | None

    def start(self) -> tuple[TrainState, nnx.State | None]:
        """The state that the next step starts from, and (rl.staleness) the weights that it is sampled from,
        where a checkpoint holds them. The caller owns them then, and may call this once only."""
        start, self._start = self._start, None
        return start

    def questions(self, step: int) -> list[QaExample]:
        """The questions of a step that this process samples, with their documents."""
        with self.stopwatch("data"):
            return self._stream.take(step)

    @property
    def minibatch_questions(self) -> int:
        """Questions of a mini-batch that are this process's."""
        return self.config.rl.minibatch_questions // jax.process_count()

    def sampler_params(self, policy: nnx.State) -> nnx.State:
        """The copy of the weights that this process samples with."""
        with self.stopwatch("reshard"):
            return self.system.sampler_params(policy)

    def update_flops(self, minibatches: Sequence[MiniBatch]) -> float:
        """Operations that this process's part of an update needs."""
        return step_metrics.update_flops(minibatches, self.system.model, self.config.train.trainable)

    def log(
        self,
        step: int,
        sampled: Rollout,
        metrics: Mapping[str, float | None],
        timing: Mapping[str, float | None],
    ) -> None:
        """Write a step's metrics and turns, and show them on the terminal."""
        self._metrics.metrics(step, metrics, timing)
        self._trajectories.write(step, sampled)
        self._progress.step(step, metrics, timing)

    def save(self, state: TrainState, next_policy: nnx.State | None, score: float | None) -> None:
        """Save a checkpoint; `score` is the step's accuracy in validation, if it had one."""
        items = self.learner.checkpoint_items(state)
        if next_policy is not None:
            items["next_policy"] = next_policy
        place = self._stream.state(state.step)
        meta = resume.meta_of(state, self.system.model, self.learner.base, place, self._render)
        with self.operations.goodput.stage("checkpoint"):
            self._checkpoints.save(meta, items, score)

    def finish(self, step: int, stopped: int | None) -> None:
        """Write the report and say where everything is; `stopped` is the signal that ended the run early."""
        if is_main():
            report = write_report(self.directory)
            self._progress.finish(self.directory, report, step, stopped)


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """Make a run's parts, or restore them from the newest checkpoint in `run.dir`; closes them at the end.

    Errors come early: what needs no weights is checked before any are loaded. Raises UserError, in all
    processes when one meets it.
    """
    use_compilation_cache(config.run.compiled_dir)
    system = together(lambda: build_system(config))
    examples = together(lambda: load_examples(config.data, system.tokenizer, "train"))
    together(lambda: health.require_equal_shares(config, jax.process_count()))
    health.require_alike(config, examples)
    stopwatch = Stopwatch()

    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(ExampleStream.of_run(config, examples))

        # Where everything is written, and what watches the run.
        run, ours = config.run, (jax.process_index(), jax.process_count())
        place = together(lambda: stack.enter_context(RunPlace(run.dir, run.staging, run.fresh, *ours)))
        directory = place.directory
        moved = together(lambda: run_directory.prepare(directory, run.fresh) if is_main() else None)
        operations = stack.enter_context(Operations(config, directory))
        progress = stack.enter_context(TrainProgress(config.train.steps, quiet=not is_main()))

        def stage(name: str, done: int, total: int) -> None:
            operations.beat()
            progress.stage(name, done, total)

        keep = config.checkpoint.keep, config.checkpoint.keep_best
        checkpoints = stack.enter_context(Checkpoints(place.checkpoints, *keep))
        newest = checkpoints.latest()
        meta = None if newest is None else checkpoints.meta(newest)

        # The agent. What sampling needs is known before any weight is loaded, and so is whether it fits.
        render = together(lambda: resume.remembered_theme(config, meta, progress.say))
        agent = together(lambda: stack.enter_context(system.agent(stopwatch, stage, render)))
        limits = agent.prompt_limits(config.rl.group_size, config.data.chunk_tokens, render)
        fits = together(lambda: [agent.engine.fits(kind) for kind in limits])

        # The learner and its state: fresh, or that of the newest complete checkpoint.
        with operations.goodput.stage("restore"):
            initial = system.initial_params()
            learner = Learner(config, system.model, system.mesh, initial, stopwatch)
            if meta is None:
                stream.start(1)
                state, next_policy = learner.init(initial), None
            else:
                resume.require_same_run(config, meta, system.model, learner.base)
                stream.resume(meta.order, meta.step, config.run.dir)
                state, next_policy = resume.restored(config, learner, checkpoints, meta, initial)
        parameters = parameter_count(initial)
        del initial  # the learner keeps the reference policy where one is needed
        progress.start(config, directory, parameters, examples, state.step, moved)
        if is_remote(run.dir):
            progress.say(f"run.dir {run.dir}: this machine works in the folder {directory}")
        progress.say(f"attention: {config.model.attention}; " + "; ".join(map(str, fits)))
        if config.engine.warm_up and state.step < config.train.steps:
            agent.engine.warm_up(system.sampler_params(learner.policy_params(state)), limits)

        # What an earlier attempt wrote after the checkpoint is dropped.
        quiet = not is_main()
        log = stack.enter_context(run_directory.RunLog(directory, config, state.step, quiet))
        trajectories = TrajectoryLog(directory, config.log, system.tokenizer, state.step, quiet)
        if is_main():
            write_about(directory, model_parameters=parameters)
        opened = Run(
            config,
            directory,
            system,
            agent,
            learner,
            Validation(config, system, agent),
            operations,
            place,
            stopwatch,
            _stream=stream,
            _render=render,
            _checkpoints=checkpoints,
            _progress=progress,
            _metrics=log,
            _trajectories=trajectories,
            _start=(state, next_policy),
        )
        del state, next_policy  # what is held here would stay in memory for the whole run
        yield opened
