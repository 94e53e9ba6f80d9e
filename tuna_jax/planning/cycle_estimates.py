"""A profile by the TPU compiler's own estimates: cycles of a program's instructions, times how often they run.

Use it to find what costs time other than matrix products, and to compare two ways of writing the same thing; it is not
a forecast. Pallas kernels and the network have no estimates, and nothing overlaps.
"""

from __future__ import annotations

import collections
import dataclasses
import re

from tuna_jax.compat import hlo_text
from tuna_jax.planning import hlo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One line of a profile.

    Attributes:
      operation: the end of JAX's path to it; a fused instruction has the name of one of its parts.
      direction: 'forward', 'backward', or 'again' for what the backward pass recomputes.
      array: dtype and shape of its first result.
      runs: executions in one run of the program.
      cycles: of all executions, on one core.
      share: of the cycles of the program.
    """

    operation: str
    direction: str
    array: str
    runs: int
    cycles: int
    share: float


def profile(text: str) -> list[Cost]:
    """The costs of a program's operations, the largest first.

    Args:
      text: of a compiled program with the compiler's estimates (`compiled.as_text()`); all branches are counted.

    Raises:
      ValueError: the text has no program, or no estimates.
    """
    computations, entry = hlo.computations(text)
    cycles: collections.Counter[tuple[str, str, str]] = collections.Counter()
    runs: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for name, times in hlo.runs(computations, entry).items():
        for line in computations.get(name, ()):
            estimate = hlo_text.CYCLES.search(line)
            if estimate:
                key = _described(line)
                cycles[key] += times * int(estimate[1])
                runs[key] += times
    total = sum(cycles.values())
    if not total:
        raise ValueError("the compiler's text has no estimated cycles")
    return [
        Cost(
            operation=key[0],
            direction=key[1],
            array=key[2],
            runs=runs[key],
            cycles=spent,
            share=spent / total,
        )
        for key, spent in cycles.most_common()
    ]


def _described(line: str) -> tuple[str, str, str]:
    """(operation, direction, array) of an instruction."""
    named, array = hlo_text.OPERATION.search(line), hlo_text.FIRST_RESULT.search(line)
    path = re.split(r"/(?![^()]*\))", named[1]) if named else []
    direction = "forward"
    if any(part.startswith(hlo_text.BACKWARD) for part in path):
        direction = "again" if hlo_text.RECOMPUTED in path else "backward"
    kept = [part for part in path if not hlo_text.WRAPPER.fullmatch(part)]
    operation = re.sub(r"\.\d+$", "", "/".join(kept[-2:])) or "no name"
    return operation, direction, array[1] if array else ""
