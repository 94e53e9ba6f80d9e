"""What was planned, as a table for a terminal or a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuna_jax.planning.chips import GIB

Result = dict[str, Any]

LEGEND = """HBM is the compiler's estimate for one device: the most in use at once, of what there is. Parameters,
optimizer (with the moving average) and the frozen VAE are arithmetic on shapes; the rest is activations and
temporaries. FLOPs are counted over the traced program, for one device; "again" is what of it is recomputed. Sent is
arithmetic on the collectives that the compiler planned, in GiB as all memory. The bound on the step is arithmetic on
these and the chip's published figures: the time of what binds, if all the rest hides behind it, and in brackets the
sum, if nothing does. The bound on MFU belongs to the first. Nothing here was measured on a TPU."""

HEADINGS = (
    ("program", "rows a device", "fits", "HBM", "spare", "parameters", "optimizer", "VAE", "rest")
    + ("TFLOP", "again", "sent", "step", "binds", "MFU", "tokens/s", "pictures/s")
)  # fmt: skip


def row(result: Result) -> list[str]:
    """A result's cells, in the order of `HEADINGS`."""
    memory, flops, devices = result["memory"], result["flops"], result["devices"]
    parts = memory["parts"]
    known = sum(parts.values())
    again = 1 - flops["useful"] / flops["counted"] if flops["counted"] else 0.0
    cells = [
        f"{result['program']} {result['stream']}".strip(),
        f"{result['rows'] / devices:g}",
        "yes" if memory["fits"] else "no",
        f"{_gib(memory['peak'])} of {_gib(memory['usable'])}",
        f"{memory['spare']:.0%}",
        _gib(parts["parameters"]),
        _gib(parts.get("optimizer", 0.0) + parts.get("average", 0.0)),
        _gib(parts.get("frozen_vae", 0.0)),
        _gib(max(memory["peak"] - known, 0.0)),
        f"{flops['counted'] / devices / 1e12:.3g}",
        f"{again:.0%}",
    ]
    if not memory["fits"]:
        return cells + ["-"] * (len(HEADINGS) - len(cells))
    bound = result["bound"]
    sent = sum(result["network"]["bytes"].values()) + result["network"]["dcn"]
    return cells + [
        _gib(sent),
        f"{_seconds(bound['step'])} ({_seconds(bound['unhidden'])})",
        bound["binds"],
        f"{bound['mfu']:.0%}",
        f"{result['tokens'] / bound['step']:,.0f}" if result["tokens"] else "-",
        f"{result['pictures'] / bound['step']:,.1f}" if result["pictures"] else "-",
    ]


def table(results: Sequence[Result]) -> str:
    """Lines of columns that stand under one another."""
    lines = [list(HEADINGS), *(row(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def heading(result: Result) -> str:
    """Where a result's program was planned for, and how it is split."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1)
    slices = f"{result['slices']} x " if result["slices"] > 1 else ""
    return (
        f"{result['experiment']} on {slices}{result['topology']} ({result['chips']} chips), mesh {mesh or 'of one'}, "
        f"remat {result['remat']}, attention {result['attention']}"
    )


def stage_cost(results: Sequence[Result]) -> str:
    """Chip-hours of all steps of the stage at the bound, if every stream was planned and fits; else ''."""
    steps = [result for result in results if result["program"] == "train"]
    share = sum(result["share"] for result in steps)
    if not steps or abs(share - 1) > 1e-6 or not all("bound" in result for result in steps):
        return ""
    mean = sum(result["share"] * result["bound"]["step"] for result in steps)
    slowest = sum(result["share"] * result["bound"]["unhidden"] for result in steps)
    useful = sum(result["share"] * result["flops"]["useful"] for result in steps)
    peak = sum(r["share"] * r["flops"]["useful"] / r["bound"]["mfu"] for r in steps)
    hours = steps[0]["steps"] * steps[0]["chips"] / 3600
    return (
        f"A step of the mixture takes at least {_seconds(mean)} ({_seconds(slowest)} if nothing overlaps), MFU at most "
        f"{useful / peak:.0%}; {steps[0]['steps']:,} steps are at least {hours * mean:,.0f} chip-hours "
        f"({hours * slowest:,.0f})."
    )


def verdict(result: Result) -> str:
    """One sentence: whether it fits, and by how much."""
    memory = result["memory"]
    name = f"{result['program']} {result['stream']}".strip()
    amounts = f"{_gib(memory['peak'])} of {_gib(memory['usable'])} GiB"
    if memory["fits"]:
        return f"{name}: fits, {amounts}, {memory['spare']:.0%} to spare"
    return f"{name}: does not fit: {amounts}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.01 * GIB or not size else f"{size / GIB:.1g}"


def _seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{1e3 * time:.3g} ms"
