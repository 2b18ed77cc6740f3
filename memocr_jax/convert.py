"""Converts checkpoints to Hugging Face's layout and back.

    python -m memocr_jax.convert export --from RUN_DIR --to DIR    a run's checkpoint for transformers, vLLM
    python -m memocr_jax.convert export --adapters ...             a LoRA run's adapters for PEFT
    python -m memocr_jax.convert import --from HF_DIR --to RUN_DIR a checkpoint to train on from, as a run
    python -m memocr_jax.convert check --hf HF_DIR                 layer by layer against transformers

Both directions are streamed and bit-exact in the same type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from memocr_jax.config import Config, MeshConfig, ModelConfig, TokenizerConfig, load_config
from memocr_jax.core.errors import UserError, run_command
from memocr_jax.models.hf_files import complete_directory, resolve, write_side_files
from memocr_jax.models.safetensors_dir import SHARD_BYTES
from render.options import parse_options

CACHE_BYTES = 2 * 10**9
"""Decoded chunks of a checkpoint that are kept, so that a chunk over several layers is decoded once."""


def export_run(
    run_dir: str | Path,
    target: str | Path,
    *,
    step: int | None = None,
    dtype: str = "",
    tokenizer: str = "",
    shard_bytes: int = SHARD_BYTES,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write a run's checkpoint as a Hugging Face directory; it appears under `target` only when complete.

    Tensors go from the checkpoint's chunks to the file one at a time: neither the mesh that saved it nor the
    size of the model matters.

    Args:
        step: of the checkpoint, default the newest.
        dtype: float32 or bfloat16, default the compute type of the run.
        tokenizer: directory of tokenizer files, default that of the run.

    Returns:
        The step that was exported.

    Raises:
        UserError: no such checkpoint, `target` exists, the disk is full, no tokenizer.
    """
    from memocr_jax.agent.open import find_run, run_habits, save_habits
    from memocr_jax.models.hf_weights import save_entries, table
    from memocr_jax.models.qwen25_vl import abstract_model
    from memocr_jax.models.tokenizer import SMALL_TOKENIZER

    found = find_run(run_dir, step)
    config = found.config
    habits = run_habits(config, found.meta)
    source = Path(config.model.path)
    source = source if source.is_dir() else source.parent
    tokenizer_dir = Path(tokenizer or config.tokenizer.path or SMALL_TOKENIZER)
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer_dir} holds no tokenizer.json; name the tokenizer with --tokenizer DIR")
    template = json.loads((SMALL_TOKENIZER / "tokenizer_config.json").read_text())["chat_template"]
    file_dtype = np.dtype(dtype or config.model.dtype)
    _, abstract = abstract_model(found.model)
    with complete_directory(target) as partial:
        write_side_files(
            partial, found.model, file_dtype, source=source, tokenizer=tokenizer_dir, chat_template=template
        )
        save_habits(partial, habits)
        fetch = _checkpoint_reader(found.items / "params")
        save_entries(table(abstract), fetch, partial, file_dtype, shard_bytes=shard_bytes, report=report)
    return found.meta.step


def export_adapters(
    run_dir: str | Path, target: str | Path, *, step: int | None = None, dtype: str = "float32"
) -> int:
    """Write the adapters of a run with train.trainable lora for PEFT; `export_run` writes them merged.

    `PeftModel.from_pretrained(model, target)` loads them onto transformers' model of the run's `model.path`.

    Args:
        step: of the checkpoint, default the newest.
        dtype: float32 or bfloat16.

    Returns:
        The step that was exported.

    Raises:
        UserError: no such checkpoint, no adapters in it, `target` exists.
    """
    import jax

    from memocr_jax.agent.open import find_run
    from memocr_jax.core.sharding import make_mesh
    from memocr_jax.models.lora import adapted, save_peft
    from memocr_jax.models.qwen25_vl import abstract_model

    found = find_run(run_dir, step)
    config = found.config
    if config.train.trainable != "lora":
        raise UserError(
            f"--from {run_dir}: it trained with train.trainable {config.train.trainable}, so it has no "
            "adapters; leave --adapters out"
        )
    _, abstract = adapted(*abstract_model(found.model), config.lora)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with complete_directory(target) as partial:
        adapters = found.load(abstract, mesh, "adapters")
        save_peft(partial, adapters, config.lora, config.model.path, np.dtype(dtype))
    return found.meta.step


def import_run(
    path_or_id: str,
    run_dir: str | Path,
    *,
    revision: str | None = None,
    config: Config | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make a run directory (step 0) from a Hugging Face checkpoint, the inverse of `export_run`.

    Args:
        path_or_id: a directory, or a hub id with its `revision`.
        config: the run's other settings; model.path, tokenizer and run.dir are set here. Default: the
            paper's, with the type of the files as compute type.

    Raises:
        UserError: as `hf_weights.load_params`, or `run_dir` already holds a run.
    """
    import jax

    from memocr_jax.agent.open import find_hf
    from memocr_jax.core.sharding import make_mesh
    from memocr_jax.models.qwen25_vl import abstract_model
    from memocr_jax.rl.resume import save_run

    found = find_hf(path_or_id, revision)
    source = found.directory.absolute()
    if config is None:
        config = Config(model=ModelConfig(dtype=found.compute_dtype))
    tokenizer = str(source) if (source / "tokenizer.json").is_file() else config.tokenizer.path
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(source), init="pretrained"),
        tokenizer=TokenizerConfig(path=tokenizer),
        run=dataclasses.replace(config.run, dir=str(run_dir)),
    )
    devices = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    _, abstract = abstract_model(found.model, param_dtype=config.param_dtype)
    with complete_directory(run_dir) as partial:
        save_run(partial, config, found.model, found.load(abstract, mesh, report=report))


def _checkpoint_reader(directory: Path) -> Callable[[Any], np.ndarray]:
    """A function that reads one tensor (`hf_weights.Entry`) from an Orbax checkpoint's `params` item.

    Goes through tensorstore, which Orbax writes with, because Orbax restores whole stacks of layers only.
    """
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
    opened: dict[tuple[str, ...], Any] = {}

    def fetch(entry: Any) -> np.ndarray:
        if entry.path not in opened:
            name = ".".join((*entry.path, "value"))
            store = {"driver": "ocdbt", "base": f"file://{directory}/", "path": f"{name}/"}
            spec = {"driver": "zarr", "kvstore": store, "recheck_cached_data": "open"}
            try:
                opened[entry.path] = ts.open(spec, open=True, context=context).result()
            except (ValueError, OSError) as error:
                raise UserError(f"{directory}: parameter {name} cannot be read ({error})") from error
        array = opened[entry.path]
        part = array if entry.layer is None else array[entry.layer]
        if tuple(part.shape) != entry.shape:
            raise UserError(
                f"{directory}: {'.'.join(entry.path)} is {list(part.shape)}, must be {list(entry.shape)}"
            )
        return part.read().result()

    return fetch


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of bytes with its rate, on stderr; and one line with the total at the end."""
    from memocr_jax.core.progress import ProgressBar

    start, size = time.perf_counter(), 0
    with ProgressBar(what, size=True) as bar:

        def report(done: int, total: int) -> None:
            nonlocal size
            size = total
            bar.update(done, total)

        yield report
    seconds = time.perf_counter() - start
    bar.say(f"{what}: {size / 1e6:.1f} MB in {seconds:.1f} s ({size / seconds / 1e6:.0f} MB/s)")


Source = Annotated[str, tyro.conf.arg(name="from")]
Target = Annotated[str, tyro.conf.arg(name="to")]


@dataclasses.dataclass(frozen=True)
class Export:
    """A run's checkpoint as a Hugging Face directory."""

    source: Source
    """Run directory."""
    target: Target
    """Directory to write."""
    step: int | None = None
    """Step of the checkpoint; default: the newest."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Type of the weights; default: the run's."""
    tokenizer: str = ""
    """Directory of the tokenizer; default: the run's."""
    adapters: tyro.conf.FlagCreatePairsOff[bool] = False
    """Export the adapters of a LoRA run alone, for PEFT."""


@dataclasses.dataclass(frozen=True)
class Import:
    """A Hugging Face checkpoint as a run directory."""

    source: Source
    """Hugging Face directory or hub id."""
    target: Target
    """Run directory to write."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    config: str | None = None
    """YAML file with the run's other settings."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Compare with transformers, layer by layer (needs torch)."""

    hf: str
    """Hugging Face directory or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""


COMMANDS = (
    Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(argv: list[str] | None = None) -> None:
    args = parse_options(COMMANDS, argv, "python -m memocr_jax.convert", description=__doc__.split("\n")[0])
    if isinstance(args, Export) and args.adapters:
        step = export_adapters(args.source, args.target, step=args.step, dtype=args.dtype or "float32")
        print(f"adapters of step {step} of {args.source} exported to {args.target}")
    elif isinstance(args, Export):
        with progress_bar("export") as report:
            step = export_run(
                args.source,
                args.target,
                step=args.step,
                dtype=args.dtype or "",
                tokenizer=args.tokenizer,
                report=report,
            )
        print(f"step {step} of {args.source} exported to {args.target}")
    elif isinstance(args, Import):
        config = load_config(args.config) if args.config else None
        with progress_bar("import") as report:
            import_run(args.source, args.target, revision=args.revision, config=config, report=report)
        print(f"{args.source} imported as {args.target}")
    else:
        from memocr_jax.models.check import check_checkpoint, print_table

        print_table(check_checkpoint(resolve(args.hf, args.revision)))


if __name__ == "__main__":
    run_command(main)
