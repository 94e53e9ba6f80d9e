"""`docs/scaling.md`, made of the JSON files that the command wrote: whoever doubts a number runs the command again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuna_jax.planning import attention_memory, report

Result = dict[str, Any]

_TOP = """# Scaling: what fits, and how fast it could be at most

Made by `python -m tuna_jax.plan --collect={folder} --page={page}` of the files in `{folder}`. The command that wrote
each of them stands above its table; it runs anywhere (`pip install libtpu`), without a TPU, data or weights.

{legend}
"""

_GLANCE = """## The stages at a glance

Every stream's step is planned below; here is their mixture, by the shares of the streams: the step that leaves least
memory, the bound on the mean step, on MFU, and the chip-hours of the whole stage; in brackets if nothing overlaps.
A bound is no forecast: it lets every matrix product run at the chip's peak and everything else hide or wait its least.
What good code has reached: MaxText tells of 45.5 % MFU for Llama-3.1-8B on v6e-256 and 65 % for Llama-2-70B on v5p.

"""


def collect(folder: Path, page: Path) -> str:
    """The page's text.

    Raises:
      ValueError: the folder has no plan, or a file is not one; it is named.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"--collect={folder}: no *.json there; plan --json={folder}/NAME.json writes one"
        )
    sections, glances = [], []
    for file in files:
        try:
            held = json.loads(file.read_text())
            sections.append(_attention(held) if held["kind"] == "attention" else _plan(held))
            glances += filter(
                None, [report.glance(held["results"])] if held["kind"] == "plan" else []
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is no file that plan --json wrote: {error!r}") from error
    top = _TOP.format(folder=folder, page=page, legend=report.LEGEND)
    summary = [_GLANCE + _markdown([report.GLANCE, *glances]) + "\n"] if glances else []
    return "\n".join([top, *summary, *sections])


def markdown(results: Sequence[Result]) -> str:
    """The table of `report.table` as Markdown."""
    return _markdown([report.HEADINGS, *(report.row(r) for r in results)])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the headings."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _plan(held: dict[str, Any]) -> str:
    results = held["results"]
    name = f"{results[0]['experiment']} on {results[0]['topology']}"
    cost = report.stage_cost(results)
    slowest = max(result["compiler"]["seconds"] for result in results)
    memory = max(result["compiler"]["host_memory"] for result in results) / report.GIB
    versions = results[0]["compiler"]
    parts = [
        f"## {name}\n",
        _command(held),
        f"{report.heading(results[0])}.\n",
        markdown(results) + "\n",
        f"{cost}\n" if cost else "",
        _searched(held.get("search", [])),
        f"Measured, here: the slowest program compiled in {slowest:.0f} s, with {memory:.1f} GiB of memory (jax "
        f"{versions['jax']}, libtpu {versions['libtpu']}).\n",
    ]
    return "\n".join(part for part in parts if part)


def _attention(held: dict[str, Any]) -> str:
    return "\n".join(
        [
            "## Memory of attention\n",
            _command(held),
            f"Forward and backward of one row on one chip of {held['topology']}, {attention_memory.HEADS} heads over "
            f"{attention_memory.KV_HEADS}, head_dim {attention_memory.HEAD_DIM}, bfloat16; the compiler's estimate.\n",
            attention_memory.table(held["results"]) + "\n",
        ]
    )


def _command(held: dict[str, Any]) -> str:
    return f"    python -m tuna_jax.plan {' '.join(held['command'])}\n"


def _searched(tried: Sequence[str]) -> str:
    if not tried:
        return ""
    return "Searched: " + "; ".join(tried) + ".\n"
