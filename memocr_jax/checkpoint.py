"""Checkpoints of a run: Orbax, atomic, restored onto any mesh.

`<run_dir>/checkpoints/<step>/` holds three items: `params`, `opt_state` (trees of arrays) and `meta` (JSON:
step, updates, the model's config.json). A checkpoint that was not finished is never listed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from memocr_jax.config import CheckpointConfig, Config
from memocr_jax.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says about itself."""

    step: int
    updates: int
    model: dict[str, Any]
    """The model's configuration, in the layout of Hugging Face's config.json."""


class Checkpoints:
    """The checkpoints of one run directory. Saving is asynchronous; `close` waits for it."""

    def __init__(self, run_dir: str | Path, keep: int | None = None, read_only: bool = False):
        self.directory = Path(run_dir).absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise UserError(f"{run_dir}: no checkpoints there; name the directory of a run (--run.dir)")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=read_only, create=not read_only),
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Every complete step, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: nnx.State, opt_state: Any, meta: Meta) -> None:
        """Start saving; returns once the arrays are copied from the devices."""
        # Chunks follow the stacked `layers` axis, so that an export reads one layer at a time.
        by_layer = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**28, shard_axes=(0,)), params)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params, save_args=by_layer),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
            ),
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


def abstract_like(tree: Any, shardings: Any = None) -> Any:
    """The abstract tree of `tree` (arrays or ShapeDtypeStructs), with `shardings` or the arrays' own."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def require_same_model(meta: Meta, model: Qwen25VLConfig, run_dir: str | Path) -> None:
    """Raise UserError when a checkpoint is of another model, naming the first field that differs."""
    ours, theirs = _flat(model.to_dict()), _flat(meta.model)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{run_dir}: its checkpoint is of another model: {name} is {theirs.get(name)!r} there and "
                f"{ours.get(name)!r} in model.path; use that model, another --run.dir, or --run.fresh"
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
    if not (Path(run_dir) / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not the directory of a run (it has no config.yaml)")
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{run_dir}: it has no complete checkpoint yet; let the run reach one")
        if step is not None and step not in steps:
            raise UserError(f"{run_dir}: it has no checkpoint of step {step}; there are {sorted(steps)}")
        yield checkpoints, steps[-1] if step is None else step


def save_run(run_dir: str | Path, config: Config, model: Qwen25VLConfig, params: nnx.State) -> None:
    """Make a run directory that starts from `params` (step 0), as `convert import` does.

    Training continues from it; the optimiser starts fresh, for the file holds none.
    """
    from memocr_jax.config import save_config
    from memocr_jax.rl.update import init_optimizer, make_optimizer

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, run_dir / "config.yaml")
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    opt_state = init_optimizer(make_optimizer(config.optimizer), params, mesh)
    with Checkpoints(run_dir, keep=CheckpointConfig().keep) as checkpoints:
        checkpoints.save(0, params, opt_state, Meta(0, 0, model.to_dict()))
