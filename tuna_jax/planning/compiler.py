"""Runs the compiler on a lowered program and reads what it says: memory, text, or that the program does not fit."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tuna_jax.compat import hlo_text

# Products that wait for parts of a gathered weight cost 2.6 times on v5e at 2,000 tokens a chip (facts.md, section 2).
OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler said of a program; bytes on one device.

    Attributes:
      fits: whether it compiled; False only if the device's memory does not hold it.
      peak: the most memory in use at once. If it does not fit: what it would have used.
      capacity: what the compiler had, where it said so.
      arguments, outputs, aliased, temporaries, code: parts; what is aliased is in both arguments and outputs.
      seconds: that the compiler took here. host_memory: the most this process has used so far.
      text: of the optimised program; empty if it does not fit.
      estimates: the same with the compiler's estimates of cycles, where it was asked for and gives them: of some large
        programs for v5p and v6e it cannot.
    """

    fits: bool
    peak: float
    capacity: float | None = None
    arguments: float = 0.0
    outputs: float = 0.0
    aliased: float = 0.0
    temporaries: float = 0.0
    code: float = 0.0
    seconds: float = 0.0
    host_memory: float = 0.0
    text: str = dataclasses.field(default="", repr=False)
    estimates: str = dataclasses.field(default="", repr=False)


def compile_lowered(lowered: Any, estimates: bool = False) -> Compiled:
    """Compiles what `jax.jit(f).lower(...)` gave.

    Args:
      lowered: a program. estimates: also ask for the compiler's estimates of cycles.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's own, of whatever is not a lack of device memory.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Large programs cannot be turned to text afterwards; the compiler can write it itself.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options={**OPTIONS, **dump})
        except Exception as error:
            lacking = hlo_text.out_of_memory(str(error))
            if lacking is None:
                raise
            used, capacity = lacking
            return Compiled(
                fits=False,
                peak=used,
                capacity=capacity,
                seconds=time.monotonic() - start,
                host_memory=_host_memory(),
            )
        seconds = time.monotonic() - start
        text = _largest(Path(folder))
    memory = compiled.memory_analysis()
    return Compiled(
        fits=True,
        peak=float(memory.peak_memory_in_bytes),
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        aliased=float(memory.alias_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        code=float(memory.generated_code_size_in_bytes),
        seconds=seconds,
        host_memory=_host_memory(),
        text=text,
        estimates=_estimates(compiled) if estimates else "",
    )


def _estimates(compiled: Any) -> str:
    try:
        return compiled.as_text()
    except Exception:  # of whatever kind: the program did compile, and the rest is known of it
        return ""


def _largest(folder: Path) -> str:
    """The text of the program that was asked for: the largest of those that the compiler wrote."""
    found = [p for p in folder.glob(hlo_text.DUMPED) if hlo_text.BUFFERS not in p.name]
    return max(found, key=lambda path: path.stat().st_size).read_text() if found else ""


def _host_memory() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
