"""Plans of runs: operations against a count by hand, memory against what a process takes, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from memocr_jax.compile_plan import main
from memocr_jax.config import Config, ModelConfig, TrainConfig, load_config
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.plan.chips import parse_topology
from memocr_jax.plan.compiled import compile_program
from memocr_jax.plan.devices import has_compiler, stand_ins
from memocr_jax.plan.programs import PlannedRun
from memocr_jax.plan.roofline import Facts, Program
from memocr_jax.plan.turns import loads_of
from memocr_jax.rl.pack import Shape
from render.errors import CommandError
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "configs/models/tiny")
CPU = parse_topology("cpu:1")


def tiny_run(**train) -> PlannedRun:
    settings = {"length_multiple": 256, "logp_chunk_tokens": 128, **train}
    config = Config(
        model=ModelConfig(path=TINY, init="random", dtype="float32"), train=TrainConfig(**settings)
    )
    return PlannedRun(config, Qwen25VLConfig.from_file(TINY), CPU, *stand_ins(CPU))


def program_of(lower, name: str = "gradient") -> Program:
    """A program whose memory and time by arithmetic are 1, 2, ..."""
    estimate = Facts(1.0, 2.0, 5.0, 6.0)
    return Program(name, "update", "", 1.0, 3.0, 4.0, "", lower=lower, estimate=lambda: estimate)


def compiled_update(run: PlannedRun, name: str, *shape: int) -> Facts:
    return compile_program(program_of(lambda: run.learner.lower(Shape(*shape))[name]), CPU)


def test_operations_equal_a_count_by_hand():
    """A forward pass over one packed row of 512 tokens, of which 256 are sampled, without an image."""
    run = tiny_run()
    facts = compiled_update(run, "log-probabilities", 0, 512, 256)
    c = run.model.text
    heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    width, inner, vocabulary = c.hidden_size, c.intermediate_size, c.vocab_size
    # A token passes q (width x heads dim), k and v (width x kv_heads dim each), o (heads dim x width), and
    # gate, up and down (width x inner each); a product and its sum are two operations.
    token = 2 * (width * heads * dim + 2 * width * kv_heads * dim + heads * dim * width + 3 * width * inner)
    # Plain attention goes over chunks of 128 queries; those of chunk i meet all 128 (i + 1) keys before their
    # end, masked or not: 128 * (128 + 256 + 384 + 512) pairs, each 2 dim for its score, 2 dim for its value.
    pairs = 128 * (128 + 256 + 384 + 512)
    attention = 4 * heads * dim * pairs
    # Logits of the sampled tokens alone.
    by_hand = c.num_hidden_layers * (512 * token + attention) + 256 * 2 * width * vocabulary
    assert facts.unknown_loops == 0
    assert facts.flops == pytest.approx(by_hand, rel=0.05)


def test_no_array_of_a_gradient_has_the_rows_length_twice():
    """Attention goes by chunks of queries, forward and backward: no [heads, length, length]."""
    length = 4096  # more than any matrix of the tiny model has
    facts = compiled_update(tiny_run(logp_chunk_tokens=512), "gradient", 0, length, 2048)
    assert 128 <= facts.second_side < length / 2


MEASURE = """
import sys
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, gc, json
from tests.test_compile_plan import Shape, tiny_run
run = tiny_run(micro_batch_rows=28, logp_chunk_tokens=28 * 512)
lowered = run.learner.lower(Shape(0, 512, 512))["gradient"]
compiled = lowered.compile()
memory = compiled.memory_analysis()
predicted = memory.argument_size_in_bytes + memory.temp_size_in_bytes
predicted += memory.output_size_in_bytes - memory.alias_size_in_bytes

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

# Compiling leaves memory behind: arguments are made first, and then the peak starts anew.
args, kwargs = jax.block_until_ready(
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), lowered.args_info)
)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
jax.block_until_ready(compiled(*args, **kwargs))
print(json.dumps([predicted, memory.argument_size_in_bytes + status("VmHWM") - before]))
"""


def test_memory_is_what_the_process_takes():
    # Large enough that what does not grow with the program (up to 100 MB) is small.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(root=str(ROOT))],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted > 500e6, "too small to be measured"
    assert measured == pytest.approx(predicted, rel=0.25), (predicted, measured)


def test_work_of_the_papers_recipe():
    """A plan's turns have the lengths and sizes that agent, engine and packer give."""
    config = load_config(ROOT / "configs/qwen25vl_7b_lora_80gb.yaml")
    model = Qwen25VLConfig.from_file(ROOT / "configs/models/qwen2.5-vl-7b")
    run = PlannedRun(config, model, CPU, *stand_ins(CPU))
    loads = loads_of(run.agent, config, processes=1, chunks=8, fill=0.5)
    draft, read, low = loads
    assert [load.limits for load in loads] == run.agent.prompt_limits(16, 5000, config.render)
    # 16 questions in two waves, of 8 chunks each, one after the other.
    assert (draft.groups, draft.limits.siblings, draft.calls) == (16 * 8, 16, 2 * 8)
    assert (read.groups, read.limits.siblings, low.limits.siblings) == (16 * 16, 2, 1)
    assert (read.image_tokens, low.image_tokens) == (512, 32)
    # 8 drafts and three readings of each of 256 memories, at about half of 2,048 tokens.
    sampled = sum(load.sampled_tokens for load in loads)
    assert sampled == pytest.approx(256 * (8 + 3) * 1024, rel=0.1)
    shape, rows, share = draft.rows(run.learner.packing)
    assert shape.length == shape.prefix + shape.siblings * shape.own <= config.train.max_row_tokens
    assert rows >= draft.groups and 0.4 < share <= 1
    programs = {program.name: program for program in run.programs(loads)}
    fit = run.engine.fits(draft.limits)
    assert f"{fit.rows} rows" in programs["decode draft"].shape
    # More rows are asked for than the pool holds: it is filled several times.
    assert programs["decode draft"].runs > draft.calls * 2048 / config.engine.decode_segment


def plan_of(capsys, tmp_path, *arguments: str) -> tuple[int, str, dict]:
    path = tmp_path / "plan.json"
    status = main([*arguments, "--json", str(path)])
    return status, capsys.readouterr().out, json.loads(path.read_text())


COMMAND = ("--config", str(ROOT / "configs/qwen25vl_7b_v5e256.yaml"))
MODEL = ("--model.path", str(ROOT / "configs/models/qwen2.5-vl-7b"))


def test_the_7b_recipe_leaves_a_tenth_of_a_v5e_free(tmp_path):
    """By arithmetic, in a process that shows 256 devices; compiled it is in docs/plans.md. The model is not
    there: its shapes are (`model.shapes`)."""
    path = tmp_path / "plan.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "memocr_jax.compile_plan", *COMMAND, "--topology", "v5e:16x16"),
            *("--arithmetic", "--price", "1.2", "--json", str(path)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arithmetic" in done.stdout and "fits: " in done.stdout and "None of these times" in done.stdout
    plan = json.loads(path.read_text())
    assert plan["fits"] is True and plan["hbm_free_share"] >= 0.1 and plan["source"] == ["arithmetic"]
    assert plan["hbm_bytes"] == max(e["peak_bytes"] for e in plan["executables"].values())
    assert plan["step_s"] == pytest.approx(sum(plan["stages_s"].values())) and 0 < plan["mfu"] < 1
    assert plan["cost"] == pytest.approx(1.2 * plan["device_hours"])
    assert {"prefill draft", "decode draft", "vision read", "gradient draft", "apply"} <= set(
        plan["executables"]
    )


def test_a_plan_needs_the_shapes_of_the_model():
    with pytest.raises(UserError, match=r"model\.path is models/none, which is not there.*set model\.shapes"):
        main([*COMMAND, "--model.path", "models/none", "--model.shapes", "", "--topology", "h100:1x1"])


def test_adapters_for_7b_fit_80_gb_with_a_base_in_bfloat16(capsys, tmp_path):
    config = ("--config", str(ROOT / "configs/qwen25vl_7b_lora_80gb.yaml"))
    arguments = (*config, *MODEL, "--topology", "h100:1", "--arithmetic")
    status, _, half = plan_of(capsys, tmp_path, *arguments)
    assert status == 0 and half["fits"] and half["hbm_free_share"] >= 0.1
    # What samples is the merged policy itself: the base is there twice, in half the bytes.
    state = half["state_bytes"]
    assert state["merged"] == 0 and state["frozen"] == state["sampler"] == pytest.approx(2 * 8.29e9, rel=0.01)
    status, output, whole = plan_of(capsys, tmp_path, *arguments, "--lora.base-dtype", "float32")
    assert status == 1 and not whole["fits"] and "DOES NOT FIT" in output
    assert whole["state_bytes"]["frozen"] == 2 * state["frozen"] == whole["state_bytes"]["merged"]


def test_a_program_whose_text_xla_cannot_give_has_its_memory_alone():
    class Compiled:
        def memory_analysis(self):
            names = ("argument", "temp", "output", "alias")
            return SimpleNamespace(**{f"{name}_size_in_bytes": 10 * i for i, name in enumerate(names, 1)})

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: async-update instruction should have 1 operands")

    program = program_of(lambda: SimpleNamespace(compile=Compiled))
    program.facts = compile_program(program, CPU)
    facts = program.facts
    assert (facts.argument_bytes, facts.temporary_bytes, facts.output_bytes) == (10, 20, -10)
    assert (facts.source, facts.flops, facts.bytes) == ("memory compiled", 5.0, 6.0)
    assert program.peak_bytes == 10 + 20 - 10 + 4


def test_a_program_that_is_refused_says_what_it_needs():
    def refuse():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory: Used 2.00K of 1.00K hbm.")

    program = program_of(lambda: SimpleNamespace(compile=refuse))
    program.facts = compile_program(program, CPU)
    assert "Ran out of memory" in program.facts.error and not program.fits(CPU)
    assert program.peak_bytes == 2048 + 4


def test_a_row_lies_on_one_process():
    with pytest.raises(UserError, match=r"mesh.tensor is 8, which does not divide the 4 devices"):
        main(
            [
                *COMMAND,
                *MODEL,
                "--topology",
                "v5e:16x16",
                "--arithmetic",
                "--mesh.fsdp",
                "32",
                "--mesh.tensor",
                "8",
            ]
        )


def test_a_plan_that_is_compiled_for_the_cpu(capsys, tmp_path):
    arguments = ("--config", str(ROOT / "configs/tiny.yaml"), "--model.path", TINY, "--topology", "cpu:1")
    cache = ("--cache", str(tmp_path / "cache"))
    status, output, plan = plan_of(capsys, tmp_path, *arguments, *cache, "--programs", "apply,decode draft")
    assert status == 0 and "compiled" in output and "arithmetic" in output
    assert plan["executables"]["apply"]["source"] == "compiled"
    decode = plan["executables"]["decode draft"]
    assert decode["source"] == "compiled" and decode["flops"] > 0 and decode["temporary_bytes"] > 0
    assert plan["executables"]["gradient draft"]["source"] == "arithmetic"
    assert plan["hbm_limit_bytes"] is None, "a CPU's memory is not the plan's business"
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--topology is missing",)),
        (("--topology", "cpu:1", "--fill", "2"), ("--fill is 2.0", "at most 1")),
        (("--topology", "v5p:2x2x4"), ("mesh.data x mesh.fsdp x mesh.tensor", "64 x 4")),
    ],
)
def test_the_command_says_what_is_wrong(arguments, words):
    with pytest.raises((UserError, CommandError)) as error:
        main([*COMMAND, *MODEL, *arguments, "--arithmetic"])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_compiled_for_a_tpu_that_is_not_here(tmp_path):
    pytest.importorskip("libtpu")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "memocr_jax.compile_plan", "--config", str(ROOT / "configs/tiny.yaml")),
            *("--model.path", TINY, "--topology", "v5e:2x2", "--mesh.fsdp", "4", "--programs", "apply"),
            *("--json", str(tmp_path / "plan.json")),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    apply = json.loads((tmp_path / "plan.json").read_text())["executables"]["apply"]
    assert apply["source"] == "compiled" and {c["kind"] for c in apply["collectives"]} == {"all-reduce"}


def test_compiled_for_a_gpu_that_is_not_here(tmp_path):
    """Two nodes of four H100s: gradients are summed over the network, and attention is cuDNN's."""
    if not has_compiler(parse_topology("h100:1")):
        pytest.skip("JAX's CUDA plugin is not installed (pip install 'jax[cuda13]'); no GPU is needed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "memocr_jax.compile_plan", "--config", str(ROOT / "configs/tiny.yaml")),
            *("--model.path", TINY, "--topology", "h100:2x4", "--mesh.data", "2", "--mesh.fsdp", "4"),
            *("--model.dtype", "bfloat16", "--train.micro-batch-rows", "8", "--rl.minibatch-questions", "2"),
            *("--programs", "gradient draft,apply", "--json", str(tmp_path / "plan.json")),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    programs = json.loads((tmp_path / "plan.json").read_text())["executables"]
    gradient = programs["gradient draft"]
    assert gradient["source"] == "compiled" and gradient["flops"] > 0
    assert {c["nodes"] for c in gradient["collectives"]} == {1, 2}
