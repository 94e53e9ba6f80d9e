"""Compiles a lowered program and returns its memory and text, or that it does not fit."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from tuna_jax.compat import hlo_text

# Products that wait for parts of a gathered weight take 2.6 times as long on v5e at 2,000 tokens per chip (facts.md,
# section 2).
OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler reports about a program; bytes are on one device.

    Attributes:
      fits: whether it compiled; False only if it needs more than the device's memory.
      peak: the most memory in use at once; if it does not fit, the memory that it would need.
      capacity: the memory that the compiler can use, if it reports that.
      arguments, outputs, aliased, temporaries, code: parts of the memory; aliased bytes are in both arguments and
        outputs.
      seconds: compile time on this machine.
      host_memory: the most memory that this process has used so far.
      text: of the optimised program; empty if it does not fit.
      estimates: the text with the compiler's estimates of cycles, if requested; empty for some large programs for v5p
        and v6e, for which the compiler has none.
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
    """Compiles the result of `jax.jit(f).lower(...)`.

    Args:
      lowered: a program.
      estimates: also return the compiler's estimates of cycles.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's error, unless it is a lack of device memory.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # Large programs cannot be converted to text afterwards, but the compiler can write the text itself.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options={**OPTIONS, **dump})
        except Exception as error:
            memory = hlo_text.out_of_memory(str(error))
            if memory is None:
                raise
            used, capacity = memory
            return Compiled(
                fits=False,
                peak=used,
                capacity=capacity,
                seconds=time.monotonic() - start,
                host_memory=_host_memory(),
            )
        seconds = time.monotonic() - start
        text = _largest(Path(folder))
    return dataclasses.replace(
        _numbers(compiled),
        seconds=seconds,
        host_memory=_host_memory(),
        text=text,
        estimates=_estimates(compiled) if estimates else "",
    )


def described(compiled: Any) -> Compiled:
    """The numbers and the text of a program that is compiled already, for the devices at hand."""
    return dataclasses.replace(_numbers(compiled), text=_estimates(compiled))


def _numbers(compiled: Any) -> Compiled:
    memory = compiled.memory_analysis()
    return Compiled(
        fits=True,
        peak=float(memory.peak_memory_in_bytes),
        arguments=float(memory.argument_size_in_bytes),
        outputs=float(memory.output_size_in_bytes),
        aliased=float(memory.alias_size_in_bytes),
        temporaries=float(memory.temp_size_in_bytes),
        code=float(memory.generated_code_size_in_bytes),
    )


def _estimates(compiled: Any) -> str:
    try:
        return compiled.as_text()
    except Exception:  # Of any kind: the program did compile, and only its text is missing.
        return ""


def _largest(folder: Path) -> str:
    """The text of the program itself: the largest of those that the compiler wrote."""
    files = [p for p in folder.glob(hlo_text.DUMPED) if hlo_text.BUFFERS not in p.name]
    return max(files, key=lambda path: path.stat().st_size).read_text() if files else ""


def _host_memory() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
