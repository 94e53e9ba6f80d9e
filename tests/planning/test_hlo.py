"""Programs written by hand in the format of the compiler."""

import pytest

from tuna_jax.planning import hlo

# The TPU compiler writes the attributes of a kernel on separate lines.
KERNEL = """HloModule jit_step, is_scheduled=true

%body (param: (s32[], f32[8])) -> (s32[], f32[8]) {
  %param = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %kernel.1 = f32[8]{0} custom-call(%param), custom_call_target="kernel", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 640}"
}}, metadata={op_name="jit(step)/while/body/shard_map/kernel"}
  %sum.1 = f32[8]{0} all-reduce(%kernel.1), to_apply=%add
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %sum.1)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}, execution_thread="main"

%condition (param.1: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(28)
  ROOT %lt.1 = pred[]{:T(512)} compare(%index, %constant.5), direction=LT
}

ENTRY %main.1 (param.0: f32[8]) -> f32[8] {
  %param.0 = f32[8]{0} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[8]{0}) while(%tuple.0), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""


def test_instructions_after_a_kernel_belong_to_its_computation():
    found, entry = hlo.computations(KERNEL)
    assert entry == "main.1" and set(found) == {"body", "add", "condition", "main.1"}
    names = [line.split(" = ")[0] for line in found["body"]]
    assert names == ["%param", "%kernel.1", "%sum.1", "%tuple.1"]
    assert hlo.runs(found, entry) == {"main.1": 1, "condition": 28, "body": 28, "add": 28}


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.computations("nothing")
