"""Operations, bytes and collectives read from the text of programs: against counts by hand."""

import jax
import pytest

from memocr_jax.plan.cost import Collective, program_cost
from memocr_jax.plan.hlo import second_side

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


def entry(body: str) -> str:
    """A program of eight devices whose entry has these instructions."""
    return "HloModule m, num_partitions=8\n\nENTRY %main (x: f32[4,64]) -> f32[4,64] {\n" + body + "}\n"


@pytest.mark.parametrize(
    ("groups", "devices", "nodes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4, 1),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2, 2),
        ("replica_groups={}", 8, 2),
        ("replica_groups=[2,4]<=[8]", 4, 1),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4, 1),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", 2, 2),
        # The mesh's devices in another order: 'a' runs over a node's, 'c' over the two nodes.
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", 4, 1),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", 2, 2),
        # Of an axis of eight the inner part of size two, and the outer one.
        ("replica_groups=mesh['a'=8] {'a':(4)2}", 2, 1),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", 2, 2),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,4}}", 2, 2),
    ],
)
def test_a_collectives_group_is_within_a_node_or_across(groups, devices, nodes):
    kind = "collective-permute" if "source" in groups else "all-to-all"
    text = f"  %x = f32[4,64]{{1,0}} parameter(0)\n  ROOT %y = f32[4,64]{{1,0}} {kind}(%x), {groups}\n"
    (found,) = program_cost(entry(text), within=4).collectives
    assert found == Collective(kind, devices, 1.0, 4 * 64 * 4, nodes)


def test_collectives_of_several_arrays_count_all_of_them():
    text = (
        "  %x = f32[4,64]{1,0} parameter(0)\n  %w = bf16[8,64]{1,0} parameter(1)\n"
        "  %s = ((f32[4,64]{1,0}, bf16[8,64]{1,0}), (f32[16,64]{1,0}, bf16[32,64]{1,0})) "
        "all-gather-start(%x, %w), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}\n"
        "  ROOT %y = (f32[16,64]{1,0}, bf16[32,64]{1,0}) all-gather-done(%s)\n"
    )
    (gather,) = program_cost(entry(text)).collectives
    assert (gather.devices, gather.bytes) == (4, 16 * 64 * 4 + 32 * 64 * 2)


def test_a_library_that_multiplies_is_counted_and_its_workspace_is_not():
    settings = '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    text = (
        "  %x = bf16[4,64]{1,0} parameter(0)\n  %w = bf16[64,32]{1,0} parameter(1)\n"
        "  ROOT %y = (bf16[4,32]{1,0}, s8[4194304]{0}) custom-call(%x, %w), "
        f'custom_call_target="__cublas$lt$matmul", backend_config={settings}\n'
    )
    cost = program_cost(entry(text))
    assert cost.flops == 2 * 4 * 64 * 32
    assert cost.bytes == 2 * (4 * 64 + 64 * 32 + 4 * 32)


@pytest.mark.parametrize(("mask", "share"), [("CAUSAL", 0.5), ("PADDING_CAUSAL", 0.5), ("PADDING", 1.0)])
def test_flash_attention_by_cudnn(mask, share):
    """1 row, 4 heads over 2 key heads, 256 queries and 512 keys, 128 wide."""

    def call(target: str, results: str) -> str:
        settings = (
            '{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":["1","4","256","512"]},'
            f'"mask_type":"{mask}"}}}}'
        )
        return entry(
            "  %q = bf16[1,256,4,128]{3,2,1,0} parameter(0)\n  %k = bf16[1,512,2,128]{3,2,1,0} parameter(1)\n"
            f"  ROOT %y = ({results}, u8[0]{{0}}) custom-call(%q, %k, %k), "
            f'custom_call_target="{target}", backend_config={settings}\n'
        )

    query, key = "bf16[1,4,256,128]{3,1,2,0}", "bf16[1,2,512,128]{3,1,2,0}"
    product = 2 * 4 * 256 * 512 * 128 * share
    forward = program_cost(call("__cudnn$fmhaSoftmax", query))
    assert (forward.flops, forward.workspace_bytes) == (2 * product, 0)
    backward = program_cost(call("__cudnn$fmhaSoftmaxBackward", f"{query}, {key}, {key}"))
    assert backward.flops == 5 * product
    # dQ and a sum of each row in float32; dK and dV of all four heads in bfloat16.
    assert backward.workspace_bytes == 4 * 256 * (128 + 1) * 4 + 2 * 4 * 512 * 128 * 2


def test_splash_attention_is_counted_by_the_pairs_of_its_mask():
    shape = "bf16[1,7,2048,128]{3,2,1,0}"
    text = entry(
        f"  %t = s8[1,4,4]{{2,1,0}} parameter(0)\n  %q = {shape} parameter(1)\n"
        f"  ROOT %splash_mqa_dkv_no_residuals.1 = {shape} custom-call(%t, %t, %q), "
        'custom_call_target="tpu_custom_call"\n'
    )
    assert program_cost(text, pairs=1000).flops == 4 * 2 * 7 * 1000 * 128


def test_scores_that_are_whole_have_two_long_sides():
    scores = jax.jit(lambda q: jax.nn.softmax(q @ q.mT)).lower(jax.ShapeDtypeStruct((2, 512, 8), "float32"))
    assert second_side(scores.compile().as_text()) == 512
