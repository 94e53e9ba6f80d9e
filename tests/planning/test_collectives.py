"""Traffic of programs written by hand in the format of the compiler, with sizes that are easy to follow."""

import pytest

from tuna_jax.planning import collectives, hlo

LOOP = """HloModule jit_step, is_scheduled=true

%body (param: (s32[], bf16[4,64])) -> (s32[], bf16[4,64]) {
  %param = (s32[]{:T(128)}, bf16[4,64]{1,0}) parameter(0)
  %part = bf16[4,64]{1,0} get-tuple-element(%param), index=1
  %all-gather.1 = bf16[16,64]{1,0:T(8,128)(2,1)} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[8]
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,64]{1,0}) tuple(%next, %part)
}

%condition (param.1: (s32[], bf16[4,64])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(28)
  ROOT %lt.1 = pred[]{:T(512)} compare(%index, %constant.5), direction=LT
}

ENTRY %main.1 (param.0: bf16[4,64]) -> bf16[4,64] {
  %param.0 = bf16[4,64]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[4,64]{1,0}) while(%tuple.0), condition=%condition, body=%body
  ROOT %result = bf16[4,64]{1,0} get-tuple-element(%while.1), index=1
}
"""


def program(*lines: str, more: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def sent(line: str, kind: str, devices: int = 8) -> float:
    found = collectives.traffic(program(line), devices)
    assert found.total == found.bytes[kind]
    return found.total


def test_a_loop_counts_as_often_as_its_condition_says():
    found = collectives.traffic(LOOP, 8)
    assert found.count["all-gather"] == 28
    assert found.bytes["all-gather"] == 28 * 16 * 64 * 2 * 3 / 4
    assert found.moved == 28 * 16 * 64 * 2


def test_a_loop_in_a_loop_multiplies():
    inner = LOOP.replace("ENTRY %main.1", "%outer").replace("direction=LT", "direction=LT", 1)
    outer = inner + program("%while.2 = (s32[]) while(%t), condition=%condition, body=%outer")
    assert collectives.traffic(outer, 8).count["all-gather"] == 28 * 28


def test_a_known_trip_count_is_taken():
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert collectives.traffic(known, 8).count["all-gather"] == 3


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("all-gather", 3 / 4),
        ("reduce-scatter", 3),
        ("all-reduce", 2 * 3 / 4),
        ("all-to-all", 3 / 4),
    ],
)
@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[8]",
        "[2,4]<=[4,2]T(1,0)",
        "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}",
    ],
)
def test_a_ring_of_four(kind, factor, groups):
    line = f"%x.1 = f32[10,100]{{1,0}} {kind}(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert sent(line, kind) == 4000 * factor


def test_no_groups_are_all_devices():
    line = "%x = f32[1000]{0} all-reduce(%p), replica_groups={}, to_apply=%add"
    assert sent(line, "all-reduce") == 2 * 4000 * 7 / 8


def test_a_group_of_one_sends_nothing():
    assert sent("%x = f32[1000]{0} all-gather(%p), replica_groups=[8,1]<=[8]", "all-gather") == 0


def test_a_tuple_counts_all_its_arrays():
    line = "%x = (bf16[8,16]{1,0}, /*index=1*/f32[100]{0}) all-reduce(%p, %q), replica_groups=[4,2]<=[8]"
    assert sent(line, "all-reduce") == 8 * 16 * 2 + 400


def test_an_asynchronous_collective_counts_once_and_only_its_result():
    start = "%g = (f32[10]{0}, f32[40]{0}, u32[]{:S(2)}, u32[]{:S(2)}) all-gather-start(%p), replica_groups=[2,4]<=[8]"
    done = "%d = f32[40]{0} all-gather-done(%g)"
    found = collectives.traffic(program(start, done), 8)
    assert found.bytes["all-gather"] == 160 * 3 / 4
    permute = "%c = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), "
    permute += "source_target_pairs={{0,1},{4,5}}"
    assert sent(permute, "collective-permute") == 32


def test_an_asynchronous_call_counts_once():
    inside = "%job (p: f32[10]) -> f32[40] {\n  %g = f32[40]{0} all-gather(%p), replica_groups=[2,4]<=[8]\n}\n"
    start = "%s = ((f32[10]{0}), f32[40]{0}, u32[]) async-start(%p), calls=%job"
    done = "%d = f32[40]{0} async-done(%s), calls=%job"
    assert collectives.traffic(program(start, done, more=inside), 8).count["all-gather"] == 1


def test_a_collective_that_overlaps_with_others_counts_once():
    """It stands in the fusion that starts it, in those that it overlaps with, and in the one that ends it."""
    gather = "%g.{} = f32[40]{{0}} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8]"
    names = ("start", "overlapping", "done")
    inside = "".join(
        f"%{name} (p: f32[10]) -> f32[40] {{\n  {gather.format(name)}\n}}\n" for name in names
    )
    calls = [f"%f.{name} = f32[40]{{0}} fusion(%p), kind=kCustom, calls=%{name}" for name in names]
    other = gather.format("other").replace("channel_id=7", "channel_id=8")
    found = collectives.traffic(program(*calls, other, more=inside), 8)
    assert found.count["all-gather"] == 2
    assert found.bytes["all-gather"] == 2 * 160 * 3 / 4
    # In a loop it counts as often as the loop runs.
    body = (
        "%body (param: (s32[])) -> (s32[]) {\n" + "".join(f"  {call}\n" for call in calls) + "}\n"
    )
    head = LOOP[LOOP.index("%condition") : LOOP.index("ENTRY")]
    loop = "%w = (s32[]) while(%t), condition=%condition, body=%body"
    found = collectives.traffic(program(loop, more=inside + body + head), 8)
    assert found.count["all-gather"] == 28


def test_a_fused_all_reduce_scatter_is_a_reduce_scatter():
    inside = "%all-reduce-scatter.1.clone (p: f32[40]) -> f32[10] {\n"
    inside += "  %r = f32[40]{0} all-reduce(%p), replica_groups=[2,4]<=[8]\n}\n"
    call = "%fusion.1 = f32[10]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1.clone"
    found = collectives.traffic(program(call, more=inside), 8)
    assert found.bytes["reduce-scatter"] == 160 * 3 / 4
    assert found.bytes["all-reduce"] == 0


def test_traffic_to_other_slices_is_counted_separately():
    """Eight chips in two slices of four: over all eight, three quarters move within and a half of a quarter between."""
    line = "%x = f32[1000]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}"
    found = collectives.traffic(program(line), 8, slices=2)
    assert found.total == 2 * 4000 * 3 / 4
    assert found.dcn == 2 * 4000 / 4 * 1 / 2
    pairs = "%x = f32[1000]{0} all-reduce(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}"
    across = collectives.traffic(program(pairs), 8, slices=2)
    assert (across.total, across.dcn) == (0, 2 * 4000 / 2)
    within = "%x = f32[1000]{0} all-reduce(%p), replica_groups=[2,4]<=[8]"
    assert collectives.traffic(program(within), 8, slices=2).dcn == 0


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("ALL_REDUCE", 2 * 2 / 3), ("ALL_GATHER", 2.0), ("REDUCE_SCATTER", 2 / 3), ("ONE_TO_ONE", 1)],
)
def test_what_the_hosts_send_to_other_slices_counts(kind, sent):
    """Three slices; a `recv` of the same array is not another transfer."""
    attributes = f'frontend_attributes={{_xla_megascale_transfer_type="{kind}"}}'
    lines = [
        f"%{name} = (bf16[1,500]{{1,0}}, u32[]{{:S(2)}}, token[]) {name}(%x, %t), channel_id=3, {attributes}"
        for name in ("send", "recv")
    ]
    found = collectives.traffic(program(*lines), 12, slices=3)
    assert found.dcn == pytest.approx(1000 * sent)
    assert found.total == 0
    assert found.count[kind.lower().replace("_", "-")] == 1


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.computations("HloModule nothing")
