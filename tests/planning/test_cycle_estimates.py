"""A profile of a program written by hand in the format of the compiler."""

import pytest

from tuna_jax.planning import cycle_estimates

NAMES = {
    "forward": "jit(step)/jvp()/while/body/closed_call/dot_general",
    "backward": "jit(step)/transpose(jvp())/while/body/closed_call/checkpoint/dot_general",
    "again": "jit(step)/transpose(jvp())/while/body/checkpoint/rematted_computation/exp",
    "kernel": "jit(step)/jvp()/while/body/shard_map/vmap(a(b/c))/jit(_splash)/dynamic_slice",
}


def fusion(number: int, array: str, name: str, spent: int) -> str:
    return (
        f'%fusion.{number} = {array}{{1,0:T(8,128)}} fusion(%x), metadata={{op_name="{NAMES[name]}"}}, '
        f'backend_config={{"window_config":{{"estimated_cycles":"{spent}"}}}}'
    )


TEXT = f"""
%body (param: (s32[], f32[8])) -> (s32[], f32[8]) {{
  {fusion(1, "bf16[8,64]", "forward", 30)}
  {fusion(2, "bf16[8,64]", "forward", 20)}
  {fusion(3, "f32[8]", "again", 7)}
}}

%condition (param.1: (s32[], f32[8])) -> pred[] {{
  %constant.5 = s32[]{{:T(128)}} constant(10)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  {fusion(4, "(f32[512,64], bf16[8]", "backward", 400)}
  {fusion(5, "s32[1]", "kernel", 30)}
  %copy.1 = f32[8]{{0}} copy(%x), backend_config={{"estimated_cycles":"1"}}
}}
"""


def test_cycles_are_multiplied_by_runs_and_the_largest_cost_is_first():
    costs = cycle_estimates.profile(TEXT)
    fields = [(c.operation, c.direction, c.array, c.runs, c.cycles) for c in costs]
    assert fields == [
        ("dot_general", "forward", "bf16[8,64]", 20, 500),
        ("dot_general", "backward", "f32[512,64]", 1, 400),
        ("exp", "again", "f32[8]", 10, 70),
        ("dynamic_slice", "forward", "s32[1]", 1, 30),
        ("no name", "forward", "f32[8]", 1, 1),
    ]
    assert sum(cost.share for cost in costs) == pytest.approx(1)
    assert costs[0].share == pytest.approx(500 / 1001)


def test_a_text_without_estimates_is_refused():
    with pytest.raises(ValueError, match="no estimated cycles"):
        cycle_estimates.profile(
            "ENTRY %main (p: f32[8]) -> f32[8] {\n  %a = f32[8] parameter(0)\n}\n"
        )
