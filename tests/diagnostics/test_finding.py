"""The table is readable, and what fails on any process fails."""

import re

from tuna_jax.diagnostics.finding import (
    FAIL,
    PASS,
    SLOW,
    Finding,
    header,
    joined,
    over_processes,
    table_row,
)

GOOD = Finding(result=PASS, measured="all well", numbers={"a": 1})
BAD = Finding(result=FAIL, measured="no link", mend="a new cable", numbers={"b": 2})


def test_the_worst_part_decides_and_all_mends_are_kept_once():
    finding = joined([GOOD, BAD, Finding(result=SLOW, measured="late", mend="a new cable")])
    assert finding.result == FAIL and finding.mend == "a new cable"
    assert finding.measured.splitlines() == ["all well", "no link", "late"]
    assert finding.numbers == {"a": 1, "b": 2}


def test_a_failure_elsewhere_is_named_and_one_everywhere_is_said_once():
    names = ["process 0 (a)", "process 1 (b)"]
    finding = over_processes([GOOD, BAD], names)
    assert finding.result == FAIL and "process 1 (b): no link" in finding.measured
    assert over_processes([BAD, BAD], names).measured == "no link"


def test_columns_stay_aligned_and_commands_whole():
    long = Finding(result=SLOW, measured="measured " * 30 + "x" * 90, mend="--" + "y" * 70 + " now")
    lines = [*header(120).splitlines(), *table_row("collectives", long, 120).splitlines()]
    column = lines[0].index("result")
    assert {line[column - 2 : column].strip() for line in lines[2:]} == {""}
    assert lines[2].startswith("collectives  measured") and lines[2][column:].startswith("slow")
    assert "--" + "y" * 70 in "\n".join(lines)
    coloured = table_row("data", BAD, 120, colour=True)
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == table_row("data", BAD, 120)
