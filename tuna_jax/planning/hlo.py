"""Reads the compiler's text of an optimised program: its computations, and how often each of them runs."""

from __future__ import annotations

from collections.abc import Mapping

from tuna_jax.compat import hlo_text

Computations = dict[str, list[str]]


def computations(text: str) -> tuple[Computations, str]:
    """The instructions of every computation by name, and the name of the entry computation.

    Raises:
      ValueError: the text has no ENTRY computation, so it is not a whole program.
    """
    result: Computations = {}
    entry = ""
    current: list[str] | None = None
    for line in text.split("\n"):
        head = hlo_text.COMPUTATION.match(line)
        if head:
            current = result.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif hlo_text.COMPUTATION_END.match(line):
            current = None
        elif current is not None and " = " in line:
            current.append(line.strip().removeprefix("ROOT "))
    if not entry:
        raise ValueError("the compiler's text has no ENTRY computation")
    return result, entry


def runs(computations: Computations, entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program.

    The TPU compiler notes no trip count, so that of a loop is the constant that its condition compares with; a loop
    without one counts once. All branches are counted.
    """
    calls = {name: _called(lines, computations) for name, lines in computations.items()}
    times: dict[str, int] = {}
    _add(calls, entry, 1, times)
    return times


def _add(
    calls: Mapping[str, list[tuple[str, int]]], name: str, count: int, times: dict[str, int]
) -> None:
    times[name] = times.get(name, 0) + count
    for callee, rounds in calls.get(name, ()):
        _add(calls, callee, count * rounds, times)


def _called(lines: list[str], computations: Computations) -> list[tuple[str, int]]:
    """(computation, rounds) of every call of a computation."""
    callees: list[tuple[str, int]] = []
    for line in lines:
        loop = hlo_text.WHILE.search(line)
        if loop:
            noted = hlo_text.TRIP_COUNT.search(line)
            rounds = int(noted[1]) if noted else _rounds(computations.get(loop[1], []))
            callees += [(loop[1], rounds), (loop[2], rounds)]
            continue
        if hlo_text.ASYNC_END.search(line):
            continue
        callees += [(name, 1) for name in hlo_text.CALLS.findall(line)]
        for branches in hlo_text.BRANCHES.findall(line):
            callees += [(name.strip().lstrip("%"), 1) for name in branches.split(",")]
    return callees


def _rounds(condition: list[str]) -> int:
    constants = [int(match[1]) for line in condition if (match := hlo_text.CONSTANT.search(line))]
    return max(constants, default=1)
