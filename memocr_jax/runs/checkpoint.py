"""Checkpoints of a run: Orbax, atomic, restored onto any mesh.

`<run_dir>/checkpoints/<step>/` holds trees of arrays (`params`, `opt_state`, others that the learner names,
and with rl.staleness `next_policy`, the weights that the next step is sampled with) and `meta` (JSON). A
checkpoint that was not finished is never listed. Random streams are functions of the seed and the step, and
`meta` holds the place in the stream of examples, so a run continues with the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from memocr_jax.config import Config
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.runs.run_place import CHECKPOINTS, is_remote, require_local
from render.settings import RenderSettings


@dataclasses.dataclass(frozen=True)
class Meta:
    """The description in a checkpoint."""

    step: int
    updates: int
    model: dict[str, Any]
    """The model's configuration, in the layout of Hugging Face's config.json."""
    theme_css: str = ""
    """Text of the theme that its pages were drawn with."""
    order: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The place in the stream of examples (`data.pipeline.ExampleStream.state`)."""
    skipped_in_row: int = 0
    """Updates in a row that were skipped for a gradient that is not finite, up to this step."""
    base: str = ""
    """Fingerprint of the frozen weights that its adapters belong to (`rl.trainable.fingerprint`)."""


class Checkpoints:
    """The checkpoints of one run directory. Saving is asynchronous; `close` waits for it."""

    def __init__(
        self, run_dir: str | Path, keep: int | None = None, keep_best: int = 0, read_only: bool = False
    ):
        """Keeps the newest `keep` (None: all) and the `keep_best` with the best `score` of `save`. `run_dir`
        may be in a bucket that Orbax writes to (gs://)."""
        here = run_dir if is_remote(run_dir) else Path(run_dir).absolute()
        self.directory = epath.Path(here) / CHECKPOINTS
        if read_only and not self.directory.is_dir():
            raise UserError(f"{run_dir}: no checkpoints there; name the directory of a run (--run.dir)")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if keep is None else _preservation(keep, keep_best),
                best_fn=_score,  # makes Orbax write scores; the policy decides what is kept
                read_only=read_only,
                create=not read_only,
            ),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return sorted(self._manager.all_steps())

    def has(self, step: int, item: str) -> bool:
        """Whether a checkpoint holds this tree of arrays."""
        return (self.directory / str(step) / item).is_dir()

    def save(self, meta: Meta, items: dict[str, Any], score: float | None = None) -> None:
        """Start saving the named trees of arrays; returns once they are copied from the devices.

        `score` is the step's accuracy in validation, if it had one.
        """
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if name != "params"}
        # Chunks follow the stacked `layers` axis, so that an export reads one layer at a time.
        params = items["params"]
        by_layer = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**28, shard_axes=(0,)), params)
        saved["params"] = ocp.args.StandardSave(params, save_args=by_layer)
        self._manager.save(
            meta.step,
            args=ocp.args.Composite(**saved, meta=ocp.args.JsonSave(dataclasses.asdict(meta))),
            metrics=None if score is None else {SCORE: score},
        )

    def meta(self, step: int) -> Meta:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return Meta(**restored["meta"])

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """Restore the named items (`params`, `opt_state`), each laid out as its abstract tree says.

        Leaves of an abstract tree are jax.ShapeDtypeStruct with a sharding.
        """
        args = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in abstract}

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


SCORE = "validation/accuracy"
"""Name under which a checkpoint's metrics hold its score."""


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]


def _preservation(keep: int, keep_best: int) -> Any:
    policies = ocp.checkpoint_managers
    best = policies.BestN(n=keep_best, get_metric_fn=_score, keep_checkpoints_without_metrics=False)
    newest = policies.LatestN(n=keep)
    return policies.AnyPreservationPolicy([newest, best]) if keep_best else newest


def theme_of(meta: Meta | None, render: RenderSettings) -> RenderSettings:
    """Settings of the renderer with the theme that a checkpoint remembers, as its text.

    They stay as they are where there is no checkpoint, or an old one, which remembers none.
    """
    remembers = meta is not None and bool(meta.theme_css)
    return dataclasses.replace(render, theme_css=meta.theme_css) if remembers else render


def require_same_model(meta: Meta, model: Qwen25VLConfig, run_dir: str | Path) -> None:
    """Raise UserError when a checkpoint is of another model, naming the first field that differs."""
    ours, theirs = _flat(model.to_dict()), _flat(meta.model)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{run_dir}: its checkpoint is of another model: {name} is {theirs.get(name)!r} there and "
                f"{ours.get(name)!r} in model.path; use that model, another --run.dir, or --run.fresh"
            )


def require_same_base(meta: Meta, base: str, config: Config) -> None:
    """Raise UserError when a checkpoint's adapters belong to other weights than those of fingerprint `base`.

    Either is empty without adapters."""
    if meta.base and base and meta.base != base:
        raise UserError(
            f"{config.run.dir}: its adapters were trained on other weights than these of model.path "
            f"{config.model.path} (model.init {config.model.init}, "
            f"lora.base_dtype {config.lora.base_dtype}); "
            "name the base that the run began with, or use another --run.dir or --run.fresh"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@contextlib.contextmanager
def open_checkpoint(run_dir: str | Path, step: int | None = None) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run for reading, and the step to read: the given one or the newest.

    Raises UserError when the directory is not a run's or has no such complete checkpoint.
    """
    require_local(run_dir, "run directory")
    if not (Path(run_dir) / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not the directory of a run (it has no config.yaml)")
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{run_dir}: it has no complete checkpoint yet; let the run reach one")
        if step is not None and step not in steps:
            raise UserError(f"{run_dir}: it has no checkpoint of step {step}; there are {sorted(steps)}")
        yield checkpoints, steps[-1] if step is None else step
