"""Plans as tables for a terminal or a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tuna_jax.hardware.chips import GIB

Result = dict[str, Any]

LEGEND = """HBM, in GiB, is the compiler's estimate for one device: the most in use at once, of the memory that a
program can use. Parameters, optimizer (with the moving average) and the frozen VAE are computed from shapes; the rest
is activations and temporaries. FLOPs are counted over the traced program, for one device; "again" is the share that is
recomputed or is padding of the attention kernel, which MFU does not count. "sent", in GiB, is computed from the
collectives that the compiler planned. The bound on the step is computed from these and the chip's published figures:
the time of the resource that binds, if all others are hidden behind it, and in parentheses the sum of all, if nothing
overlaps. The bound on MFU belongs to the former. Bytes to and from HBM are the least possible: arguments, results,
temporaries and gathered arrays are each written or read once. A text loss is planned as if every token had a label; in
training, chunks without labels are not computed. Nothing here was measured on a TPU."""

PROFILE = """the compiler's estimates of a core's cycles, the largest first. Pallas kernels and the network have no
estimates, and nothing overlaps: use it to find what costs time next to the matrix products, and to compare two ways of
writing the same thing. A fused instruction has the name of one of its parts; `again` is recomputed."""

HEADINGS = (
    ("program", "rows per device", "fits", "HBM", "spare", "parameters", "optimizer", "VAE", "rest")
    + ("TFLOP", "again", "sent", "step", "binds", "MFU", "tokens/s", "images/s")
)  # fmt: skip


def row(result: Result) -> list[str]:
    """A result's cells, in the order of `HEADINGS`."""
    memory, flops, devices = result["memory"], result["flops"], result["devices"]
    parts = memory["parts"]
    accounted = sum(parts.values())
    again = 1 - flops["useful"] / flops["counted"] if flops["counted"] else 0.0
    cells = [
        f"{result['program']} {result['stream']}".strip(),
        f"{result['rows'] / devices:g}",
        "yes" if memory["fits"] else "no",
        f"{_gib(memory['peak'])} of {_gib(memory['usable'])}",
        f"{memory['spare']:.0%}",
        _gib(parts["parameters"] + parts.get("frozen_model", 0.0)),
        _gib(parts.get("optimizer", 0.0) + parts.get("average", 0.0)),
        _gib(parts.get("frozen_vae", 0.0)),
        _gib(max(memory["peak"] - accounted, 0.0)),
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
    """The results as aligned columns, one line each."""
    return _columns([list(HEADINGS), *(row(result) for result in results)])


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


LAYOUTS = (
    ("layout", "mesh", "parameters in", "chosen", "images", "fits", "HBM", "parameters")
    + ("TFLOP", "sent", "time", "binds", "images/s")
)  # fmt: skip


def layout_row(result: Result) -> list[str]:
    """The cells of sampling in an inference layout, in the order of `LAYOUTS`."""
    cells = dict(zip(HEADINGS, row(result), strict=True))
    layout = result["layout"]
    return [
        layout["name"],
        mesh(result),
        layout["dtype"],
        "yes" if layout["chosen"] else "",
        str(result["pictures"]),
        *(cells[name] for name in ("fits", "HBM", "parameters", "TFLOP", "sent")),
        *(cells[name] for name in ("step", "binds", "images/s")),
    ]


def layout_table(results: Sequence[Result]) -> str:
    """Sampling in every inference layout as aligned columns, one line each."""
    return _columns([list(LAYOUTS), *(layout_row(result) for result in results)])


def layout_heading(result: Result) -> str:
    """The model and the topology of a table of inference layouts."""
    return (
        f"Sampling with the model of {result['experiment']} on {topology(result)} ({result['chips']} chips), attention "
        f"{result['attention']}"
    )


def profile(result: Result) -> str:
    """The profile of a result's program as aligned columns, one line per operation."""
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
    """The topology that a result's program was planned for, and how it is sharded."""
    return (
        f"{result['experiment']} on {topology(result)} ({result['chips']} chips), mesh {mesh(result)}, "
        f"remat {result['remat']}, attention {result['attention']}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """The steps of a stage's streams, weighted by their shares.

    Attributes:
      step: seconds at the bound.
      unhidden: seconds if nothing overlaps.
      mfu, unhidden_mfu: the share of the chips' peak that useful FLOPs reach in these times.
      hours, unhidden_hours: chip-hours of all steps of the stage.
      spare: the least share of memory that a step leaves free.
      binds: the resource that binds the step with most of the time.
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
    # Useful FLOPs are the bound's MFU times the FLOPs that the chips can do in the bound's time.
    possible = sum(r["share"] * r["flops"]["useful"] / r["bound"]["mfu"] for r in steps)
    hours = steps[0]["steps"] * steps[0]["chips"] / 3600
    return Mixture(
        step=mean,
        unhidden=slowest,
        mfu=useful / possible,
        unhidden_mfu=useful / possible * mean / slowest,
        hours=hours * mean,
        unhidden_hours=hours * slowest,
        spare=min(result["memory"]["spare"] for result in steps),
        binds=max(steps, key=lambda r: r["share"] * r["bound"]["step"])["bound"]["binds"],
    )


def stage_cost(results: Sequence[Result]) -> str:
    """Chip-hours of all steps of the stage at the bound, if every stream was planned and fits; otherwise ''."""
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
    ("experiment", "topology", "mesh", "remat", "rows per device", "spare HBM")
    + ("step", "MFU", "binds", "chip-hours")
)  # fmt: skip


def glance(results: Sequence[Result]) -> list[str] | None:
    """A stage's cells in the order of `GLANCE`, if every stream was planned and fits."""
    mean = mixture(results)
    if mean is None:
        return None
    steps = [result for result in results if result["program"] == "train"]
    first, rows = steps[0], [each["rows"] / each["devices"] for each in steps]
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
    """One line: whether the program fits, and the memory that is left."""
    memory = result["memory"]
    name = f"{result['program']} {result['stream']}".strip()
    amounts = f"{_gib(memory['peak'])} of {_gib(memory['usable'])} GiB"
    if memory["fits"]:
        return f"{name}: fits, {amounts}, {memory['spare']:.0%} free"
    return f"{name}: does not fit: {amounts}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= 0.01 * GIB or not size else f"{size / GIB:.1g}"


def _seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{1e3 * time:.3g} ms"
