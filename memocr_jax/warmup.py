"""Warm up: `python -m memocr_jax.warmup --config configs/nano_warmup.yaml [--run.seed 1 ...]`.

Supervised training before GRPO: lessons of the synthetic world (`warmup.stages`), or conversations of your
own with images (`warmup.data`). The same command continues a run from its newest complete checkpoint; the run
is one that `evaluate`, `ask` and `convert export` take.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, WarmupStage, parse_command
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.core.signals import StopSignals, exit_status
from memocr_jax.runs.run_place import is_remote

if TYPE_CHECKING:
    from memocr_jax.sft.lessons import Lessons, Taught
    from memocr_jax.sft.update import TaughtBatch, Teacher

AHEAD = 2
"""Batches that are made before they are asked for."""


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
    plan = Plan(config)  # checked before anything heavy is imported
    import jax
    import jax.numpy as jnp
    import numpy as np

    from memocr_jax.agent.system import build_system, parameter_count
    from memocr_jax.core.sharding import abstract_like
    from memocr_jax.models.qwen25_vl import abstract_model
    from memocr_jax.rl.optimizer import abstract_optimizer
    from memocr_jax.rl.pack import Packing
    from memocr_jax.runs import run_directory
    from memocr_jax.runs.checkpoint import Checkpoints, Meta, require_same_model
    from memocr_jax.sft.prior import look_back, silence_blocks
    from memocr_jax.sft.update import SftState, Teacher
    from render import open_renderer
    from render.theme import theme_css

    run_dir = Path(config.run.dir)
    system = build_system(config)
    moved = run_directory.prepare(run_dir, config.run.fresh)
    if moved:
        print(f"--run.fresh: what was in {run_dir} is now in {moved}")
    packing = Packing(
        system.model,
        config.train.max_row_tokens,
        config.train.micro_batch_rows,
        config.train.length_multiple,
        config.engine.window_multiple,
    )
    graphdef, _ = abstract_model(
        system.model, dtype=jnp.dtype(config.model.dtype), mesh=system.mesh, remat=config.train.remat
    )
    teacher = Teacher(graphdef, config.optimizer, packing, system.mesh, config.train.logp_chunk_tokens)
    params = system.initial_params()
    if config.warmup.from_nothing:
        params = jax.jit(
            lambda params: look_back(silence_blocks(params), system.model),
            out_shardings=jax.tree.map(lambda x: x.sharding, params),
        )(params)
    css = theme_css(config.render)

    with contextlib.ExitStack() as stack:
        renderer = None
        if config.warmup.stages:
            renderer = stack.enter_context(open_renderer(config.render, config.agent.memory_format))
        checkpoints = stack.enter_context(Checkpoints(run_dir, config.checkpoint.keep))
        source = _source(config, system, renderer, packing)
        newest = checkpoints.latest()
        if newest is None:
            state, done = teacher.init(params), 0
        else:
            require_same_model(checkpoints.meta(newest), system.model, run_dir)
            abstract = {
                "params": abstract_like(params),
                "opt_state": abstract_optimizer(teacher.optimizer, params, system.mesh),
            }
            state, done = SftState(**checkpoints.restore(newest, **abstract)), newest
            print(f"continuing {run_dir} after update {done}")
        print(
            f"{config.model.path}: {parameter_count(params) / 1e6:,.2f}M parameters, "
            f"{plan.updates:,} updates",
            flush=True,
        )
        del params
        log = stack.enter_context(run_directory.RunLog(run_dir, config, done))
        batches = stack.enter_context(contextlib.closing(_ahead(source.batches, done, plan)))
        stop = stack.enter_context(StopSignals("stopping after this update, with a checkpoint"))
        clock = time.perf_counter()
        for update in range(done + 1, plan.updates + 1):
            state, sums = teacher.update(state, next(batches))
            metrics: dict[str, float | None] = {}
            for lesson, (loss, sure, tokens) in sums.items():
                metrics |= {f"warmup/{lesson}/loss": loss / tokens, f"warmup/{lesson}/sure": sure / tokens}
            bad = [name for name, value in metrics.items() if not np.isfinite(value)]
            if bad:
                raise UserError(
                    f"update {update}: {bad[0]} is not finite; lower optimizer.learning_rate (it is "
                    f"{config.optimizer.learning_rate}) and continue from the last checkpoint"
                )
            last = update == plan.updates or stop.received is not None
            every = config.warmup.check_every
            if every and (update % every == 0 or last):
                metrics |= source.check(teacher, state.params)
            now = time.perf_counter()
            log.metrics(update, metrics, {"time/step_s": now - clock})
            _say(update, plan.updates, metrics, now - clock, every)
            clock = now
            if update % config.checkpoint.every_steps == 0 or last:
                meta = Meta(update, update, system.model.to_dict(), theme_css=css)
                checkpoints.save(meta, {"params": state.params, "opt_state": state.opt_state})
            if stop.received is not None:
                print(f"stopped after update {update}; the same command continues")
                break
    print(f"results: {run_dir}")
    return exit_status(stop.received)


class Plan:
    """Which stage each update belongs to. Raises UserError for stages that teach nothing."""

    def __init__(self, config: Config):
        warmup = config.warmup
        if bool(warmup.data) == bool(warmup.stages):
            raise UserError(
                "warmup: give either data (JSON lines of conversations) or stages (lessons of the synthetic "
                f"world); data is {warmup.data!r} and there are {len(warmup.stages)} stages"
            )
        if warmup.stages and config.data.source != "synthetic":
            raise UserError(
                f"warmup.stages needs data.source synthetic; it is {config.data.source!r}: use warmup.data"
            )
        for i, stage in enumerate(warmup.stages):
            most = stage.facts_max or config.data.synthetic.facts
            if stage.updates < 1 or not stage.rows:
                raise UserError(
                    f"warmup.stages[{i}]: updates is {stage.updates}, rows {stage.rows}; give both"
                )
            if not 1 <= stage.facts_min <= most:
                raise UserError(
                    f"warmup.stages[{i}].facts_min is {stage.facts_min}; use 1 to facts_max, which is {most}"
                )
        self.stages = warmup.stages
        self.updates = sum(s.updates for s in warmup.stages) if warmup.stages else warmup.updates

    def stage(self, update: int) -> WarmupStage:
        """The stage of an update, counted from 1."""
        for stage in self.stages:
            if update <= stage.updates:
                return stage
            update -= stage.updates
        raise IndexError(update)


class _Conversations:
    """Batches of a user's own conversations, every epoch in a new order."""

    def __init__(self, config: Config, system: Any, packing: Any):
        from memocr_jax.sft.conversations import Conversations

        self._config, self._packing = config, packing
        self._conversations = Conversations(
            config.warmup.data, system.tokenizer, config.agent.budget_tokens, config.train.max_row_tokens
        )

    def batches(self, update: int) -> list[TaughtBatch]:
        from memocr_jax.core.rng import host_rng
        from memocr_jax.sft.update import pack_lesson

        rows, total = self._config.warmup.batch_rows, len(self._conversations)
        numbers = []
        for place in range((update - 1) * rows, update * rows):
            epoch, index = divmod(place, total)
            order = host_rng(self._config.run.seed, "conversations", epoch).permutation(total)
            numbers.append(int(order[index]))
        return pack_lesson("data", self._conversations.rows(numbers), self._packing)

    def check(self, teacher: Teacher, params: Any) -> dict[str, float]:
        return {}


class _Lessons:
    """Batches of lessons, and a check on lessons of the validation split."""

    def __init__(self, config: Config, lessons: Callable[[str], Lessons], packing: Any):
        from memocr_jax.sft.lessons import LessonKind

        self._config, self._packing = config, packing
        self._train, self._held_out = lessons("train"), lessons("validation")
        self._plan = Plan(config)
        names = dict.fromkeys(name for stage in self._plan.stages for name in stage.rows)
        self._kinds = {name: LessonKind.parse(name) for name in names}
        self._checked: dict[str, list[list[Taught]]] = {}

    def batches(self, update: int) -> list[TaughtBatch]:
        from memocr_jax.sft.update import pack_lesson

        stage = self._plan.stage(update)
        return [
            batch
            for name, rows in stage.rows.items()
            for batch in pack_lesson(
                name, self._train.make(self._kinds[name], stage, update, rows), self._packing
            )
        ]

    def check(self, teacher: Teacher, params: Any) -> dict[str, float]:
        """Share of completions that greedy sampling would give as taught, by lesson and region."""
        most = self._config.data.synthetic.facts
        metrics = {}
        for name, kind in self._kinds.items():
            if kind.name == "draft":  # which fact is the heading is drawn at random: no one answer is right
                continue
            if name not in self._checked:
                self._checked[name] = self._held_out.make(
                    kind, WarmupStage(facts_min=most), 0, self._config.warmup.check_rows
                )
            for region, (good, number) in sorted(teacher.right(params, self._checked[name]).items()):
                metrics[f"check/{name}/{region}"] = good / number
        return metrics


def _source(config: Config, system: Any, renderer: Any, packing: Any) -> _Conversations | _Lessons:
    from memocr_jax.sft.lessons import Lessons

    if config.warmup.data:
        return _Conversations(config, system, packing)

    def lessons(split: str) -> Lessons:
        return Lessons(
            config.data.synthetic,
            config.data.seed,
            config.run.seed,
            split,
            system.tokenizer,
            system.templates,
            config.agent,
            renderer,
        )

    return _Lessons(config, lessons, packing)


def _ahead(make: Callable[[int], Any], done: int, plan: Plan) -> Iterator[Any]:
    """`make(update)` of every update after `done`, made in a thread before it is asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = []
        for update in range(done + 1, plan.updates + 1):
            waiting.append(pool.submit(make, update))
            if len(waiting) > AHEAD:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


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
