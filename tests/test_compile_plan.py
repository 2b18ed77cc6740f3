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
from memocr_jax.config import Config, MeshConfig, ModelConfig, TrainConfig, load_config
from memocr_jax.core.errors import UserError
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.plan.chips import CHIPS, parse_topology, slice_of
from memocr_jax.plan.hlo import program_cost, second_side
from memocr_jax.plan.model import Program
from memocr_jax.plan.plan import _use, with_settings
from memocr_jax.plan.programs import Programs, compile_program, topology_devices
from memocr_jax.plan.work import kinds_of, windows_of
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "configs/models/tiny")
CPU = parse_topology("cpu:1")


def tiny_programs(**settings) -> tuple[Programs, Config, Qwen25VLConfig]:
    config = Config(
        model=ModelConfig(path=TINY, init="random", dtype="float32"),
        train=TrainConfig(length_multiple=256, logp_chunk_tokens=128),
        mesh=MeshConfig(),
    )
    config = with_settings(config, settings)
    model = Qwen25VLConfig.from_file(TINY)
    devices, own = topology_devices(CPU)
    return Programs(config, model, CPU, devices, own), config, model


def lowered_update(programs: Programs, shape: tuple[int, ...]) -> dict:
    from memocr_jax.rl.pack import Shape

    return programs.learner.lower(Shape(*shape))


def test_operations_equal_a_count_by_hand():
    """A forward pass over one packed row of 512 tokens, of which 256 are sampled, without an image."""
    programs, _, model = tiny_programs()
    facts = compile_program(lowered_update(programs, (0, 512, 256))["log-probabilities"], CPU, None)
    c = model.text
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
    assert facts["unknown_loops"] == 0
    assert facts["flops"] == pytest.approx(by_hand, rel=0.05)


def test_no_array_of_a_gradient_has_the_rows_length_twice():
    """Attention goes by chunks of queries, forward and backward: no [heads, length, length]."""
    length = 4096  # more than any matrix of the tiny model has
    programs, _, model = tiny_programs(**{"train.logp_chunk_tokens": 512})
    gradient = lowered_update(programs, (0, length, 2048))["gradient"]
    facts = compile_program(gradient, CPU, None)
    assert 128 <= facts["second_side"] < length / 2
    # What would be found otherwise.
    heads = model.text.num_attention_heads
    scores = jax.jit(lambda q: jax.nn.softmax(q @ q.mT)).lower(
        jax.ShapeDtypeStruct((heads, 2048, 8), "float32")
    )
    assert second_side(scores.compile().as_text()) == 2048


MEASURE = """
import sys
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, gc, json
from tests.test_compile_plan import tiny_programs, lowered_update
programs, _, _ = tiny_programs(**{{"train.micro_batch_rows": 24, "train.logp_chunk_tokens": 4096}})
lowered = lowered_update(programs, (0, 2048, 1024))["gradient"]
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
    # Large enough that what does not grow with the program (about 100 MB, seen with 8 rows too) is small.
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


LOOP = """HloModule loop

%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(28)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%sliced (a: f32[28,16,16], i: s32[], x: f32[8,16]) -> f32[8,16] {
  %a = f32[28,16,16]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x = f32[8,16]{1,0:T(8,128)S(1)} parameter(2)
  %zero = s32[] constant(0)
  %w = f32[1,16,16]{2,1,0} dynamic-slice(%a, %i.1, %zero, %zero), dynamic_slice_sizes={1,16,16}
  %w2 = f32[16,16]{1,0} bitcast(%w)
  ROOT %y = f32[8,16]{1,0} convolution(%x, %w2), dim_labels=bf_io->bf
}

%body (p.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.1), index=0
  %x.1 = f32[8,16]{1,0} get-tuple-element(%p.1), index=1
  %stack = f32[28,16,16]{2,1,0} constant({...})
  %f = f32[8,16]{1,0} fusion(%stack, %i.2, %x.1), kind=kOutput, calls=%sliced
  %g = f32[8,64]{1,0} all-gather(%f), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i.2, %f)
}

ENTRY %main (x.2: f32[8,16]) -> f32[8,16] {
  %x.2 = f32[8,16]{1,0} parameter(0)
  %zero.1 = s32[] constant(0)
  %init = (s32[], f32[8,16]{1,0}) tuple(%zero.1, %x.2)
  %loop = (s32[], f32[8,16]{1,0}) while(%init), condition=%cond, body=%body
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loops_body_counts_as_often_as_it_runs():
    cost = program_cost(LOOP)
    assert cost.flops == 28 * 2 * 8 * 16 * 16
    (gather,) = cost.collectives
    assert (gather.kind, gather.devices, gather.count) == ("all-gather", 4, 28)
    assert gather.bytes == 28 * 8 * 64 * 4
    # The fusion reads a layer's slice (not all 28), the index and x, and writes y; then the gather.
    assert cost.bytes == 28 * (16 * 16 * 4 + 4 + 2 * 8 * 16 * 4 + (8 * 16 + 8 * 64) * 4)


@pytest.mark.parametrize(
    ("left", "right", "window", "labels", "products"),
    [
        # Seven heads over one key: only the tap that meets the input's single place counts, at 7 places.
        ("512,128,1", "7,512,128", "size=7 pad=6_6 rhs_reversal=1", "bf0_0oi->bf0", 7),
        # A batch of 16: place p and tap k meet an element of the input where 15 p + k is a multiple of 16.
        ("16,512,128", "16,128,512", "size=16 stride=15 lhs_dilate=16", "0bf_0io->0bf", 16),
    ],
)
def test_products_of_a_batch_are_convolutions_mostly_outside(left, right, window, labels, products):
    out = "512,512,7" if products == 7 else "16,512,512"
    text = (
        f"ENTRY %main (a: bf16[{left}]) -> f32[{out}] {{\n"
        f"  %a = bf16[{left}]{{1,0,2}} parameter(0)\n  %b = bf16[{right}]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[{out}]{{1,0,2}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert program_cost(text).flops == 2 * 512 * 512 * 128 * products


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v9:2x2", ("'v9'", "not known")),
        ("v5e:4", ("v5e has 2 sides", "v5e:16x16")),
        ("v5p", ("v5p:4x4x4",)),
        ("h100:64", ("nodes x GPUs",)),
    ],
)
def test_topologies_that_mean_nothing(topology, words):
    with pytest.raises(UserError) as error:
        parse_topology(topology)
    assert all(word in str(error.value) for word in words)


def test_topologies():
    slice_ = parse_topology("v5e:16x16")
    assert (slice_.devices, slice_.per_process, slice_.processes) == (256, 4, 64)
    assert str(slice_.one_host) == "v5e:2x2" and str(parse_topology("v5p:4x4x4").one_host) == "v5p:2x2x1"
    nodes = parse_topology("h100:8x8")
    assert (nodes.devices, nodes.per_process, nodes.processes) == (64, 8, 8)
    # Within a node the links are fast, across nodes the network is not.
    assert nodes.collective_s("all-gather", 1e9, 8) < nodes.collective_s("all-gather", 1e9, 64)


def test_work_of_the_papers_recipe():
    config = load_config(ROOT / "configs/qwen25vl_7b_v5e256.yaml")
    model = Qwen25VLConfig.from_file(ROOT / "configs/models/qwen2.5-vl-7b")
    draft, read, low = kinds_of(config, model, chunks=8, fill=0.5)
    assert (draft.groups, draft.siblings, draft.rounds) == (64 * 8, 16, 8)
    assert (read.groups, read.siblings, low.siblings) == (64 * 16, 2, 1)
    assert (read.patches, low.patches) == (2048, 128), "512 and 32 visual tokens"
    # 8 drafts and three readings of each of 1,024 memories, at half of 2,048 tokens.
    assert sum(k.sampled_tokens for k in (draft, read, low)) == 1024 * (8 + 3) * 1024
    windows, length, _, prefix, siblings, own = draft.row_shape(config, full=True)
    assert (windows, length) == (0, prefix + siblings * own) and length <= config.train.max_row_tokens
    assert windows_of(512, 26) >= 32


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
    arguments = (*config, *MODEL, "--topology", "h100:1x1", "--arithmetic")
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

    facts = compile_program(SimpleNamespace(as_text=lambda: "", compile=Compiled), CPU, None)
    assert (facts["argument_bytes"], facts["temporary_bytes"], facts["output_bytes"]) == (10, 20, -10)
    program = Program("gradient", "update", 1.0, 5.0, 6.0, (), 1.0, 2.0, 3.0, 4.0, 5.0, "")
    _use(program, program, facts)
    assert (program.source, program.flops, program.bytes) == ("memory compiled", 5.0, 6.0)
    assert program.peak_bytes == 10 + 20 - 10 + 4


def test_scale_says_what_more_devices_bring(tmp_path):
    path = tmp_path / "scale.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "memocr_jax.compile_plan", *COMMAND, "--topology", "v5e:16x16"),
            *("--scale", "256,1024", "--json", str(path)),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cannot run" in done.stdout and "None of these times was measured" in done.stdout
    own, few, many = json.loads(path.read_text())
    assert [(s["topology"], s["questions"]) for s in (own, few, many)] == [
        ("v5e:16x16", 64),
        ("4 x v5e:16x16", 64),
        ("4 x v5e:16x16", 256),
    ]
    assert few["plan"] is None and "does not divide over the 256 processes" in few["problem"]
    # A host has one question in both; what is added is the exchange of gradients between slices.
    one, many = own["plan"]["stages_s"], many["plan"]["stages_s"]
    assert many["draft"] == pytest.approx(one["draft"]) and 1 < many["update"] / one["update"] < 1.2


def test_topologies_of_a_number_of_devices():
    cases = [
        ("v5e", 16, "v5e:4x4"),
        ("v5e", 32, "v5e:4x8"),
        ("v5p", 32, "v5p:2x4x4"),
        ("h100", 64, "h100:8x8"),
    ]
    for name, devices, topology in cases:
        assert str(slice_of(CHIPS[name], devices)) == topology
    several = slice_of(CHIPS["v5e"], 1024)
    assert (several.slices, several.devices, several.processes) == (4, 1024, 256)
    with pytest.raises(UserError, match="24 devices of v5e do not fill"):
        slice_of(CHIPS["v5e"], 24)
    # Between slices and between nodes the network is slower than the links within.
    size, times = 1e9, []
    for where in (several, slice_of(CHIPS["h100"], 64)):
        times.append([where.collective_s("all-reduce", size, 4, across) for across in (False, True)])
    assert all(across / within > 8 for within, across in times)


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
    with pytest.raises(UserError) as error:
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
