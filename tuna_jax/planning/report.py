"""What was planned, as a table for a terminal or a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tuna_jax.hardware.chips import GIB

Result = dict[str, Any]

LEGEND = """HBM is the compiler's estimate for one device: the most in use at once, of what there is. Parameters,
optimizer (with the moving average) and the frozen VAE are arithmetic on shapes; the rest is activations and
temporaries. FLOPs are counted over the traced program, for one device; "again" is what of it is recomputed, or
padding of the attention kernel, which MFU leaves out. Sent is arithmetic on the collectives that the compiler
planned, in GiB as all memory. The bound on the step is arithmetic on these and the chip's published figures: the time
of what binds, if all the rest hides behind it, and in brackets the sum, if nothing does. The bound on MFU belongs to
the first. Bytes to and from HBM are the least there can be: arguments, results, temporaries and what is gathered,
each written or read once. A text loss is planned as if every token had a label; in training, chunks without one are
not computed. Nothing here was measured on a TPU."""

PROFILE = """where the compiler thinks that cycles of a core go, what costs most first. Kernels of our own and the
network are not in it, and nothing overlaps: it finds what costs beside the products, and compares two ways to write
the same. An instruction that was made of several has the name of one of them; `again` is recomputed."""

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
    return _columns([list(HEADINGS), *(row(result) for result in results)])


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def profile(result: Result) -> str:
    """Where the cycles of a result's program go, a line each."""
    title = f"{result['program']} {result['stream']}".strip()
    lines = [["share", "cycles", "runs", "direction", "operation", "array"]] + [
        [f"{cost['share']:.1%}", f"{cost['cycles']:,}", f"{cost['runs']:,}"]
        + [cost["direction"], cost["operation"], cost["array"]]
        for cost in result["profile"]
    ]
    return f"{title}: {PROFILE}\n\n{_columns(lines)}"


def mesh(result: Result) -> str:
    """'data 2 x fsdp 32'."""
    sizes = [f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1]
    return " x ".join(sizes) or "of one"


def topology(result: Result) -> str:
    """'2 x v5e:8x8'."""
    return f"{result['slices']} x {result['topology']}" if result["slices"] > 1 else result["topology"]  # fmt: skip


def heading(result: Result) -> str:
    """Where a result's program was planned for, and how it is split."""
    return (
        f"{result['experiment']} on {topology(result)} ({result['chips']} chips), mesh {mesh(result)}, "
        f"remat {result['remat']}, attention {result['attention']}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """The steps of a stage's streams, weighed by their shares.

    Attributes:
      step: seconds at the bound. unhidden: the same if nothing overlaps.
      mfu, unhidden_mfu: the share of the chips' peak that useful FLOPs reach in these.
      hours, unhidden_hours: chip-hours of all steps of the stage.
      spare: the least share of memory that a step leaves.
      binds: what binds the step of most time.
    """

    step: float
    unhidden: float
    mfu: float
    unhidden_mfu: float
    hours: float
    unhidden_hours: float
    spare: float
    binds: str


def mixture(results: Sequence[Result]) -> Mixture | None:
    """The mixture of a stage, if every stream was planned and fits."""
    steps = [result for result in results if result["program"] == "train"]
    share = sum(result["share"] for result in steps)
    if not steps or abs(share - 1) > 1e-6 or not all("bound" in result for result in steps):
        return None
    mean = sum(result["share"] * result["bound"]["step"] for result in steps)
    slowest = sum(result["share"] * result["bound"]["unhidden"] for result in steps)
    useful = sum(result["share"] * result["flops"]["useful"] for result in steps)
    # Useful FLOPs are the bound's MFU times what the chips could do in the bound's time.
    could = sum(r["share"] * r["flops"]["useful"] / r["bound"]["mfu"] for r in steps)
    hours = steps[0]["steps"] * steps[0]["chips"] / 3600
    return Mixture(
        step=mean,
        unhidden=slowest,
        mfu=useful / could,
        unhidden_mfu=useful / could * mean / slowest,
        hours=hours * mean,
        unhidden_hours=hours * slowest,
        spare=min(result["memory"]["spare"] for result in steps),
        binds=max(steps, key=lambda r: r["share"] * r["bound"]["step"])["bound"]["binds"],
    )


def stage_cost(results: Sequence[Result]) -> str:
    """Chip-hours of all steps of the stage at the bound, if every stream was planned and fits; else ''."""
    mean = mixture(results)
    if mean is None:
        return ""
    steps = next(result["steps"] for result in results if result["program"] == "train")
    return (
        f"A step of the mixture takes at least {_seconds(mean.step)} ({_seconds(mean.unhidden)} if nothing overlaps), "
        f"MFU at most {mean.mfu:.0%} ({mean.unhidden_mfu:.0%}); {steps:,} steps are at least {mean.hours:,.0f} "
        f"chip-hours ({mean.unhidden_hours:,.0f})."
    )


GLANCE = (
    ("experiment", "topology", "mesh", "remat", "rows a device", "spare HBM")
    + ("step", "MFU", "binds", "chip-hours")
)  # fmt: skip


def glance(results: Sequence[Result]) -> list[str] | None:
    """A stage's cells in the order of `GLANCE`, if every stream was planned and fits."""
    mean = mixture(results)
    if mean is None:
        return None
    steps = [result for result in results if result["program"] == "train"]
    first, rows = steps[0], [one["rows"] / one["devices"] for one in steps]
    return [
        first["experiment"],
        topology(first),
        mesh(first),
        first["remat"],
        f"{min(rows):g} to {max(rows):g}" if min(rows) < max(rows) else f"{rows[0]:g}",
        f"{mean.spare:.0%}",
        f"{_seconds(mean.step)} ({_seconds(mean.unhidden)})",
        f"{mean.mfu:.0%} ({mean.unhidden_mfu:.0%})",
        mean.binds,
        f"{mean.hours:,.0f} ({mean.unhidden_hours:,.0f})",
    ]


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
