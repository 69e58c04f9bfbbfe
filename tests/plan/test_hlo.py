"""Collectives read off HLO as XLA writes it for TPUs and GPUs; figures by hand."""

import pytest

from ftjax.plan.aot import too_large
from ftjax.plan.hlo import Moved, collectives

TPU = """HloModule jit_step, is_scheduled=true

%region_add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %s = f32[] add(%a, %b)
}

%start (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %ag = bf16[4,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %cs = (bf16[1,8]{1,0}, bf16[4,8]{1,0}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%piece (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %ag.1 = bf16[4,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%cond (t: (s32[], bf16[1,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%inner (t: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %f3 = (bf16[1,8], bf16[4,8]) fusion(%p), kind=kCustom, calls=%piece
}

%body (t: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %f1 = (bf16[1,8], bf16[4,8]) fusion(%p), kind=kCustom, calls=%start
  %f2 = (bf16[1,8], bf16[4,8]) fusion(%p), kind=kCustom, calls=%piece
  %w = (s32[], bf16[1,8]) while(%t), condition=%cond, body=%inner
  %ps = (f32[2,2]{1,0}, f32[2,2]{1,0}, u32[]) collective-permute-start(%x), channel_id=8, source_target_pairs={{0,1}}
  %pd = f32[2,2]{1,0} collective-permute-done(%ps)
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %w = (s32[], bf16[1,8]) while(%t), condition=%cond, body=%body, metadata={op_name="x"}
  ROOT %r = (f32[16]{0}, f32[4]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%region_add
}
"""
GPU = """HloModule jit_step

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %rs = f32[2]{0} reduce-scatter(%x), channel_id=3, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
}

%cond (t: (s32[], f32[8])) -> pred[] {
  ROOT %lt = pred[] fusion(%i), kind=kLoop, calls=%compare
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %s = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}
  %d = f32[16]{0} all-gather-done(%s)
  %r = f32[6]{0} all-reduce-start(%x), channel_id=5
}
"""
COMBINED = """HloModule jit_step

%often (x: f32[8]) -> f32[8] {
  %a = f32[8]{0} all-reduce(%x), channel_id=1
}

%never (x: f32[8]) -> f32[8] {
  %n = f32[2]{0} all-reduce(%x), channel_id=2
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %s = ((f32[2]{0:T(128)}, bf16[4,2]{1,0}), (f32[16]{0}, bf16[32,2]{1,0})) all-gather-start(%x, %y), channel_id=4
  %t = ((f32[16]{0}, f32[32]{0}), (f32[2]{0}, f32[4]{0}), u32[]) reduce-scatter-start(%x, %y), channel_id=5
  %c = f32[8]{0} conditional(%p, %x, %x), branch_computations={%often, %never}
}
"""


def test_tpu_loops_count_to_their_condition_and_pieces_of_one_channel_are_one():
    assert collectives(TPU, 8) == {
        "all-gather": Moved(5, 5 * 64, 5 * 64 * 3 / 4),  # [4, 8] bf16 among 4
        "collective-permute": Moved(5, 5 * 16, 5 * 16),
        "all-reduce": Moved(1, 80, 80),  # 16 + 4 floats, twice a half
    }


def test_gpu_loops_have_a_trip_count_and_starts_hold_operand_and_result():
    assert collectives(GPU, 8) == {
        "reduce-scatter": Moved(3, 3 * 8, 3 * 8 * 3),  # 2 floats of 8 among 4
        "all-gather": Moved(1, 64, 56),
        "all-reduce": Moved(1, 24, 42),  # among all 8
    }


def test_a_combined_start_gives_a_group_and_of_branches_the_dearest_counts():
    assert collectives(COMBINED, 8) == {
        "all-gather": Moved(1, 64 + 128, 192 * 7 / 8),
        "reduce-scatter": Moved(1, 8 + 16, 24 * 7),
        "all-reduce": Moved(1, 32, 2 * 32 * 7 / 8),
    }


@pytest.mark.parametrize(
    "message, needed",
    [
        ("E1000: CompileTimeHbmOom: ... (293.06G) exceeds available HBM (15.75G)", int(293.06 * 2**30)),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_compiler_says_of_a_program_that_is_too_large(message, needed):
    assert too_large(message) == needed
