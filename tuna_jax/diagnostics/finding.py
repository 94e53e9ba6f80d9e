"""What a check has found, and the table of all findings."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

PASS, SLOW, FAIL = "pass", "slow", "fail"
_SEVERITY = {PASS: 0, SLOW: 1, FAIL: 2}
_COLOURS = {PASS: "32", SLOW: "33", FAIL: "31;1"}
_NAME_WIDTH, _RESULT_WIDTH, _GAP = 11, 6, "  "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check.

    Attributes:
      result: 'pass'; 'slow': it works, but worse than it should; or 'fail'.
      measured: what was measured; a line per part of the check.
      mend: what to do about it; a line per advice.
      numbers: what was measured, for the JSON file.
    """

    result: str
    measured: str
    mend: str = ""
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)


def worst(results: Iterable[str]) -> str:
    """The worst of several results; 'pass' if there are none."""
    return max(results, key=_SEVERITY.__getitem__, default=PASS)


def joined(parts: Iterable[Finding]) -> Finding:
    """One finding of several parts of a check: all that they measured, and their mends, each once."""
    parts = list(parts)
    numbers: dict[str, Any] = {}
    for part in parts:
        numbers |= part.numbers
    return Finding(
        result=worst(part.result for part in parts),
        measured="\n".join(part.measured for part in parts if part.measured),
        mend="\n".join(dict.fromkeys(part.mend for part in parts if part.mend)),
        numbers=numbers,
    )


def over_processes(findings: Sequence[Finding], names: Sequence[str]) -> Finding:
    """One finding of those of all processes: that of process 0, and what others that do not pass have found.

    Args:
      findings: of the processes in order.
      names: of the processes, such as 'process 1 (host-b)'.
    """
    first, parts = findings[0], [findings[0]]
    first_lines = set(first.measured.split("\n"))
    for name, finding in zip(names[1:], findings[1:], strict=True):
        if finding.result == PASS:
            continue
        lines = [line for line in finding.measured.split("\n") if line not in first_lines]
        measured = f"{name}: " + "\n".join(lines) if lines else ""
        parts.append(dataclasses.replace(finding, measured=measured))
        first_lines.update(lines)
    return dataclasses.replace(joined(parts), numbers=first.numbers)


def header(width: int) -> str:
    """The first two lines of the table."""
    row = _row(("check", "measured", "result", "mend"), width, None)
    return f"{row}\n{'-' * len(row)}"


def table_row(name: str, finding: Finding, width: int, colour: bool = False) -> str:
    """A row of the table, of several lines if a text is long.

    Args:
      name: of the check.
      finding: its result.
      width: characters of a line.
      colour: whether the result is coloured, for terminals.
    """
    shade = _COLOURS[finding.result] if colour else None
    return _row((name, finding.measured, finding.result, finding.mend), width, shade)


def _row(texts: Sequence[str], width: int, shade: str | None) -> str:
    free = max(width, 80) - _NAME_WIDTH - _RESULT_WIDTH - 3 * len(_GAP)
    measured_width = math.ceil(free * 0.58)
    widths = (_NAME_WIDTH, measured_width, _RESULT_WIDTH, free - measured_width)
    cells = [_wrapped(text, size) for text, size in zip(texts[:-1], widths, strict=False)]
    # Commands and flags of the last column stay whole.
    cells.append(_wrapped(texts[-1], widths[-1], split=False))
    lines = []
    for index in range(max(map(len, cells))):
        parts = [cell[index] if index < len(cell) else "" for cell in cells]
        padded = [part.ljust(size) for part, size in zip(parts, widths, strict=True)]
        if shade and parts[2]:
            padded[2] = f"\033[{shade}m{padded[2]}\033[0m"
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int, split: bool = True) -> list[str]:
    lines: list[str] = []
    for line in text.split("\n"):
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=split,
        )
    return lines or [""]


def short(error: BaseException) -> str:
    """An error in one line of at most 300 characters, with its type."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return f"{type(error).__name__}: {text}".removesuffix(": ")
