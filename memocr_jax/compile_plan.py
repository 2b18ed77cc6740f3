"""Plan a run before renting anything: does it fit, how long does a step take, what does it cost?

    python -m memocr_jax.compile_plan --config configs/qwen25vl_7b.yaml --topology v5p:4x4x4

compiles every program of the run for accelerators that this machine does not have, and reads memory,
operations and communication from what XLA made. TPU slices need `pip install libtpu`, NVIDIA GPUs JAX's CUDA
plugin (`pip install "jax[cuda13]"`, no driver); where it is missing, and with `--arithmetic`, formulas
estimate all of it, and the table says so. See docs/plans.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge

from memocr_jax.config import Config, ConfigOption, parse_command
from memocr_jax.core.errors import UserError, run_command
from render.bounds import NonNegativeFloat, Probability

if TYPE_CHECKING:
    from memocr_jax.plan.predict import Plan


@dataclasses.dataclass(frozen=True)
class Options(ConfigOption):
    topology: str | None = None
    """CHIP:SHAPE, as v5e:16x16, v5p:4x4x4, h100:8x8 (nodes x GPUs), h100:1, cpu:1."""
    json: str | None = None
    """File to write the plan to as data."""
    arithmetic: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compile nothing."""
    programs: str = ""
    """Compile only these, as gradient,decode."""
    cache: str | None = None
    """Folder that keeps what was compiled."""
    chunks: Annotated[float | None, Ge(0)] = None
    """Chunks of a document; default data.max_chunks."""
    fill: Probability = 0.5
    """Mean length of what is sampled, as a share of its limit."""
    efficiency: Probability = 0.6
    """Share of the roofline that is reached."""
    price: NonNegativeFloat = 0.0
    """Price of a chip for an hour."""


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, options = parse_command(
        argv,
        "python -m memocr_jax.compile_plan",
        "Compile a run for accelerators that need not be in this machine: memory, time and cost of a step.",
        Options,
    )
    from memocr_jax.plan.chips import parse_topology
    from memocr_jax.plan.devices import described_devices, has_compiler, prepare_environment, stand_ins

    if options.topology is None:
        raise UserError("--topology is missing: name one, such as v5e:16x16, v5p:4x4x4, h100:8x8 or cpu:1")
    topology = parse_topology(options.topology)

    # Before JAX starts its devices: without compilation, any devices of the same number will do.
    compiles = not options.arithmetic and has_compiler(topology)
    accelerator = topology.is_tpu or topology.is_gpu
    prepare_environment(1 if compiles and accelerator else topology.devices)

    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.plan.predict import Assumptions, make_plan

    if not compiles and not options.arithmetic:
        package = "libtpu" if topology.is_tpu else "'jax[cuda13]'"
        print(f"{topology} by arithmetic; to compile for it: pip install {package}", file=sys.stderr)
    wanted = [word for word in options.programs.split(",") if word]
    plan = make_plan(
        config,
        Qwen25VLConfig.from_file(_shapes(config)),
        topology,
        Assumptions(
            chunks=options.chunks or config.data.max_chunks or 8,
            fill=options.fill,
            efficiency=options.efficiency,
            price=options.price,
        ),
        described_devices(topology) if compiles else stand_ins(topology),
        compiled=lambda name: compiles and (not wanted or any(word in name for word in wanted)),
        cache=Path(options.cache) if options.cache else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_plan(plan)
    if options.json:
        Path(options.json).write_text(json.dumps(plan.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 0 if plan.fits else 1


def _shapes(config: Config) -> str:
    """Where the model's config.json is: in `model.path`, else in `model.shapes`. Raises UserError."""
    if Path(config.model.path).exists():
        return config.model.path
    if config.model.shapes:
        return config.model.shapes
    raise UserError(
        f"model.path is {config.model.path}, which is not there; for a plan the shapes alone will do: set "
        "model.shapes to a folder with the model's config.json, such as configs/models/qwen2.5-vl-7b"
    )


def print_plan(plan: Plan) -> None:
    """The plan as tables."""
    from rich.console import Console

    from memocr_jax.plan.chips import GIB

    topology, data, facts = plan.topology, plan.as_dict(), [p.facts for p in plan.programs]
    console = Console(width=None if sys.stdout.isatty() else 200)
    memory = _table(
        f"{topology}: programs of a run, one device (GiB = 2^30 bytes)",
        ("program", "shape", "by", "arguments", "temporary", "beside", "peak GiB", ""),
    )
    work = _table(
        "work of one usual run of a program, one device",
        ("program", "TFLOP", "GiB moved", "collectives (count, GiB, devices)", "bound s", "runs/step"),
    )
    for p, f in zip(plan.programs, facts, strict=True):
        memory.add_row(
            *(p.name, p.shape, f.source),
            *(
                f"{n / GIB:.2f}"
                for n in (p.argument_bytes, f.temporary_bytes + f.output_bytes, p.beside_bytes)
            ),
            f"{p.peak_bytes / GIB:.2f}",
            "" if p.fits(topology) else f"does not fit: {p.setting}",
        )
        times = p.times(topology)
        slowest = max(times, key=times.get)
        exchanged = (
            f"{c.kind} {c.count:.0f}, {c.bytes / GIB:.2f}, {c.devices}"
            + (f" on {c.nodes} nodes" if c.nodes > 1 else "")
            for c in f.collectives
            if c.bytes > 1e6
        )
        work.add_row(
            p.name,
            f"{p.share * f.flops / 1e12:.2f}",
            f"{p.share * f.bytes / GIB:.2f}",
            "; ".join(exchanged),
            f"{times[slowest]:.3f} {slowest.removesuffix('_s')}",
            f"{p.runs:.1f}",
        )
    console.print(memory)
    console.print(work)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    state = ", ".join(f"{k} {v / GIB:.2f}" for k, v in dataclasses.asdict(plan.state).items() if v)
    say(f"state of a device, GiB: {state}")
    limit = topology.chip.hbm_bytes
    free = f" of {limit / GIB:.2f}, {data['hbm_free_share']:.0%} free" if data["hbm_limit_bytes"] else ""
    say(f"{'fits' if plan.fits else 'DOES NOT FIT'}: {plan.hbm_bytes / GIB:.2f} GiB{free}")
    stages = ", ".join(f"{k} {v:.1f}" for k, v in plan.stages_s.items())
    say(f"step {plan.step_s:.1f} s ({stages})")
    say(
        f"{data['tokens_per_s']:.0f} sampled tokens/s, MFU {plan.mfu:.1%} of the step, {plan.update_mfu:.1%}"
        f" of the update; {plan.steps} steps take {data['device_hours']:.0f} device-hours"
        + (f" and cost {data['cost']:.0f}" if data["cost"] is not None else "")
    )
    for p, f in zip(plan.programs, facts, strict=True):
        if f.error:
            say(f"{p.name}: {f.error}")
    a = plan.assumptions
    say(
        f"Assumed: {a.chunks:g} chunks, memories and answers {a.fill:.0%} of their limits long on average, "
        f"programs reach {a.efficiency:.0%} of their bound. None of these times was measured."
    )


def _table(title: str, names: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    words = ("program", "shape", "by", "collectives (count, GiB, devices)", "")
    for name in names:
        table.add_column(name, justify="left" if name in words else "right")
    return table


if __name__ == "__main__":
    run_command(main)
