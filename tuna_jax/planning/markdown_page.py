"""`docs/generated/scaling.md`, written from the JSON files of the command, so that every number can be reproduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.planning import attention_memory, report
from tuna_jax.utils.text_files import read_json

Result = dict[str, Any]

_TOP = """# Scaling: what fits, and upper bounds on speed

Written by `tuna-jax plan --collect={folder} --page={page}` from the files in `{folder}`. The command that
wrote each file is above its table; it runs anywhere (`pip install libtpu`), without a TPU, data or weights.

{legend}
"""

_GLANCE = """## The stages at a glance

The step of every stream is planned below. This table has their mixture, weighted by the shares of the streams: the
least spare memory of any step, the bounds on the mean step and on MFU, and the chip-hours of the whole stage; values in
parentheses assume that nothing overlaps. A bound is not a forecast: it assumes that every matrix product runs at the
chip's peak and that everything else is hidden or takes its least time. For comparison, MaxText reports 45.5 % MFU for
Llama-3.1-8B on v6e-256 and 65 % for Llama-2-70B on v5p.

"""


def collect(folder: Path, page: Path) -> str:
    """The text of the page.

    Raises:
      ValueError: the folder has no plan, or a file in it is not a plan; the message names it.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"--collect={folder} has no *.json; plan --json={folder}/NAME.json writes one"
        )
    sections, glances = [], []
    for file in files:
        try:
            plan = read_json(file)
            sections.append(_SECTIONS.get(plan["kind"], _plan)(plan))
            glances += filter(
                None, [report.glance(plan["results"])] if plan["kind"] == "plan" else []
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} was not written by plan --json: {error!r}") from error
    top = _TOP.format(folder=folder, page=page, legend=report.LEGEND)
    summary = [_GLANCE + _markdown([report.GLANCE, *glances]) + "\n"] if glances else []
    return "\n".join([top, *summary, *sections])


def markdown(results: Sequence[Result]) -> str:
    """The table of `report.table` as Markdown."""
    return _markdown([report.HEADINGS, *(report.row(r) for r in results)])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _plan(plan: dict[str, Any]) -> str:
    results = plan["results"]
    name = f"{results[0]['experiment']} on {results[0]['topology']}"
    cost = report.stage_cost(results)
    slowest = max(result["compiler"]["seconds"] for result in results)
    memory = max(result["compiler"]["host_memory"] for result in results) / report.GIB
    versions = results[0]["compiler"]
    parts = [
        f"## {name}\n",
        _command(plan),
        f"{report.heading(results[0])}.\n",
        markdown(results) + "\n",
        f"{cost}\n" if cost else "",
        _searched(plan.get("search", [])),
        f"Measured on the planning machine: the slowest program compiled in {slowest:.0f} s, with {memory:.1f} GiB of "
        f"memory (jax {versions['jax']}, libtpu {versions['libtpu']}).\n",
    ]
    return "\n".join(part for part in parts if part)


def _layouts(plan: dict[str, Any]) -> str:
    results = plan["results"]
    name = f"{results[0]['experiment']} on {results[0]['topology']}"
    return "\n".join(
        [
            f"## Inference layouts: {name}\n",
            _command(plan),
            f"{report.layout_heading(results[0])}. Of each kind of layout, the first that fits; `chosen` is what "
            "`generate`, `evaluate` and the others take by default. `time` is the bound for all images, and in "
            "parentheses the sum if nothing overlaps; every collective is counted once.\n",
            _markdown([report.LAYOUTS, *(report.layout_row(r) for r in results)]) + "\n",
        ]
    )


def _attention(plan: dict[str, Any]) -> str:
    return "\n".join(
        [
            "## Memory of attention\n",
            _command(plan),
            f"Forward and backward pass of one row on one chip of {plan['topology']}, {attention_memory.HEADS} heads "
            f"over {attention_memory.KV_HEADS}, head_dim {attention_memory.HEAD_DIM}, bfloat16; the "
            "compiler's estimate.\n",
            attention_memory.table(plan["results"]) + "\n",
        ]
    )


def _command(plan: dict[str, Any]) -> str:
    return f"    tuna-jax plan {' '.join(plan['command'])}\n"


def _searched(notes: Sequence[str]) -> str:
    return "Search: " + "; ".join(notes) + ".\n" if notes else ""


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "attention": _attention,
    "layouts": _layouts,
}
