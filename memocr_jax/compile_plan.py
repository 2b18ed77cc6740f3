"""Plan a run before renting anything: does it fit, how long does a step take, what does it cost?

    python -m memocr_jax.compile_plan --config configs/qwen25vl_7b.yaml --topology v5p:4x4x4

compiles every program of the run for a TPU slice that is not here (it needs `pip install libtpu`) and reads
memory, operations and communication from what XLA made. GPU topologies, and any with `--arithmetic`, are
estimated by formulas, and the table says so. See docs/plans.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memocr_jax.config import Config, parse_command
from memocr_jax.core.errors import UserError, run_command

if TYPE_CHECKING:
    from memocr_jax.plan.plan import Plan
    from memocr_jax.plan.scale import Scaled


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    config, options = parse_command(
        argv,
        "python -m memocr_jax.compile_plan",
        "Compile a run for a topology that is not here: memory, time and cost of a step.",
        _options,
    )
    from memocr_jax.plan.chips import parse_topology, slice_of

    if options.topology is None:
        raise UserError("--topology is missing: name one, such as v5e:16x16, v5p:4x4x4, h100:8x8 or cpu:1")
    topology = parse_topology(options.topology)
    for name in ("chunks", "fill", "efficiency", "price"):
        value = getattr(options, name)
        if value is not None and (value < 0 or (name in ("fill", "efficiency") and not 0 < value <= 1)):
            raise UserError(f"--{name} is {value}: " + _RANGES[name])

    # Before JAX is imported: for the arithmetic any devices will do that are as many.
    from memocr_jax.plan.environment import prepare_environment

    counts = [int(word) for word in options.scale.split(",") if word]
    compiles = not (options.arithmetic or options.suggest or counts or topology.is_gpu)
    most = max([topology.devices, *(slice_of(topology.chip, count).devices for count in counts)])
    prepare_environment(1 if compiles and topology.is_tpu else most)

    from memocr_jax.models.config import Qwen25VLConfig
    from memocr_jax.plan.plan import Assumptions, make_plan, suggest
    from memocr_jax.plan.programs import stand_ins, topology_devices
    from memocr_jax.plan.scale import scale

    model = Qwen25VLConfig.from_file(_shapes(config))
    assumptions = Assumptions(
        chunks=options.chunks or config.data.max_chunks or 8,
        fill=options.fill,
        efficiency=options.efficiency,
        price=options.price,
    )
    if counts:
        found = scale(config, model, topology.chip, counts, assumptions, stand_ins)
        _print_scale(found, topology.chip.name, config)
        if options.json:
            Path(options.json).write_text(json.dumps([s.as_dict() for s in found], indent=1) + "\n", "utf-8")
        return 0
    devices = topology_devices(topology) if compiles else stand_ins(topology)
    if options.suggest:
        found = suggest(config, model, topology, assumptions, devices)
        _print_suggestions(found, topology, options.suggestions)
        if options.json:
            data = [{"settings": s, **p.as_dict()} for s, p in found[: options.suggestions]]
            Path(options.json).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return 0 if found else 1
    wanted = [word for word in options.programs.split(",") if word]
    plan = make_plan(
        config,
        model,
        topology,
        assumptions,
        devices,
        compiled=lambda name: compiles and (not wanted or any(word in name for word in wanted)),
        cache=Path(options.cache) if options.cache else None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print_plan(plan, config)
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


_RANGES = {
    "chunks": "use the number of chunks of a document, such as 8",
    "fill": "use a share above 0 and at most 1, such as 0.5",
    "efficiency": "use a share above 0 and at most 1, such as 0.6",
    "price": "use the price of a chip for an hour, such as 1.2",
}


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--topology",
        metavar="CHIP:SHAPE",
        help="v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8x8 (nodes x GPUs), cpu:1",
    )
    add("--json", metavar="FILE", help="write the plan as data")
    add("--suggest", action="store_true", help="search meshes, row lengths and rows instead (arithmetic)")
    add("--suggestions", type=int, default=5, metavar="N", help="how many are printed (5)")
    add("--scale", default="", metavar="N,N", help="steps on so many devices instead (arithmetic)")
    add("--arithmetic", action="store_true", help="compile nothing")
    add("--programs", default="", metavar="WORDS", help="compile only these, as gradient,decode")
    add("--cache", metavar="DIR", help="folder that keeps what was compiled")
    add("--chunks", type=float, metavar="N", help="chunks of a document (data.max_chunks)")
    add(
        "--fill",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="mean length of what is sampled (0.5 of its limit)",
    )
    add(
        "--efficiency", type=float, default=0.6, metavar="SHARE", help="of the roofline that is reached (0.6)"
    )
    add("--price", type=float, default=0.0, metavar="P", help="of a chip for an hour")


def print_plan(plan: Plan, config: Config) -> None:
    """The plan as tables."""
    from rich.table import Table

    from memocr_jax.plan.plan import gib

    chip = plan.topology.chip
    limit = chip.hbm_bytes
    console = _console()
    table = Table(title=f"{plan.topology}: programs of a run, one device (GiB = 2^30 bytes)")
    for name in ("program", "shape", "by", "arguments", "temporary", "beside", "peak GiB", ""):
        table.add_column(name, justify="left" if name in ("program", "shape", "by", "") else "right")
    for p in plan.programs:
        fits = not p.error and p.peak_bytes <= limit
        table.add_row(
            p.name,
            p.shape,
            p.source,
            gib(p.argument_bytes),
            gib(p.temporary_bytes + p.output_bytes),
            gib(p.beside_bytes),
            gib(p.peak_bytes),
            "" if fits else f"does not fit: {p.setting}",
        )
    console.print(table)
    work = Table(title="work of one run of a program, one device")
    for name in (
        "program",
        "TFLOP",
        "GiB moved",
        "collectives (count, GiB, devices)",
        "bound s",
        "runs/step",
    ):
        work.add_column(
            name, justify="left" if name in ("program", "collectives (count, GiB, devices)") else "right"
        )
    for p in plan.programs:
        times = p.times(plan.topology)
        slowest = max(times, key=times.get)
        work.add_row(
            p.name,
            f"{p.flops / 1e12:.2f}",
            gib(p.bytes),
            "; ".join(
                f"{c.kind} {c.count:.0f}, {gib(c.bytes)}, {c.devices}" for c in p.collectives if c.bytes > 1e6
            ),
            f"{times[slowest]:.3f} {slowest.removesuffix('_s')}",
            f"{p.runs:.1f}",
        )
    console.print(work)
    state = ", ".join(f"{k} {gib(v)}" for k, v in dataclasses.asdict(plan.state).items() if v)
    data = plan.as_dict()
    say = lambda text: console.print(text, soft_wrap=True)  # noqa: E731
    say(f"state of a device, GiB: {state}")
    free = f", {data['hbm_free_share']:.0%} free" if data["hbm_free_share"] is not None else ""
    say(
        f"{'fits' if plan.fits else 'DOES NOT FIT'}: {gib(plan.hbm_bytes)} GiB"
        + (f" of {gib(limit)}{free}" if data["hbm_limit_bytes"] else "")
    )
    stages = ", ".join(f"{k} {v:.1f}" for k, v in plan.stages_s.items())
    say(f"step {plan.step_s:.1f} s ({stages})")
    say(
        f"{data['tokens_per_s']:.0f} sampled tokens/s, MFU {plan.mfu:.1%} of the step, "
        f"{plan.update_mfu:.1%} of the update; {plan.steps} steps take "
        f"{data['device_hours']:.0f} device-hours"
        + (f" and cost {data['cost']:.0f}" if data["cost"] is not None else "")
    )
    for p in plan.programs:
        if p.error:
            say(f"{p.name}: {p.error}")
    a = plan.assumptions
    say(
        f"Assumed: {a.chunks:g} chunks, memories and answers {a.fill:.0%} of their limits long, "
        f"programs reach {a.efficiency:.0%} of their bound. None of these times was measured."
    )


def _print_scale(found: list[Scaled], chip: str, config: Config) -> None:
    from rich.table import Table

    console = _console()
    table = Table(title=f"{chip}: steps predicted for several numbers of devices (arithmetic)")
    for name in (
        *("devices", "mesh", "questions", "HBM free", "draft s", "read s", "update s", "step s"),
        *("sampled tokens/s", "MFU of the step", "device-hours a step"),
    ):
        table.add_column(name, justify="right")
    for one in found:
        topology, plan = one.topology, one.plan
        if plan is None:
            table.add_row(str(topology.devices), str(topology), str(one.questions), "cannot run")
            continue
        data, stages = plan.as_dict(), plan.stages_s
        table.add_row(
            str(topology.devices),
            str(topology),
            str(one.questions),
            f"{data['hbm_free_share']:.0%}" if plan.fits else f"does not fit ({data['hbm_free_share']:.0%})",
            *(f"{stages[name]:.0f}" for name in ("draft", "read", "update")),
            f"{plan.step_s:.0f}",
            f"{data['tokens_per_s']:,.0f}",
            f"{plan.mfu:.0%}",
            f"{plan.step_s * topology.devices / 3600:.1f}",
        )
    console.print(table)
    for one in found:
        if one.problem:
            console.print(f"{one.topology}, {one.questions} questions: {one.problem}", soft_wrap=True)
    console.print(
        f"mesh.tensor {config.mesh.tensor}; mesh.fsdp grows with a slice's devices, mesh.data with the "
        "slices, and with both the rows of a micro-batch. None of these times was measured.",
        soft_wrap=True,
    )


def _print_suggestions(found: list[tuple[dict[str, Any], Plan]], topology: Any, count: int) -> None:
    from rich.table import Table

    from memocr_jax.plan.plan import gib

    console = _console()
    if not found:
        console.print(
            f"{topology}: nothing fits; take more devices, train.trainable lora, or a smaller model"
        )
        return
    names = list(found[0][0])
    table = Table(title=f"{topology}: settings that fit, fastest first (arithmetic)")
    for name in (*names, "GiB", "step s", "update MFU"):
        table.add_column(name, justify="right")
    for settings, plan in found[:count]:
        table.add_row(
            *(str(settings[name]) for name in names),
            gib(plan.hbm_bytes),
            f"{plan.step_s:.0f}",
            f"{plan.update_mfu:.0%}",
        )
    console.print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


if __name__ == "__main__":
    run_command(main)
