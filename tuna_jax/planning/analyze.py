"""Compiles one program for one topology, counts its FLOPs and bytes, and compares them with the chip's figures."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from tuna_jax.hardware import flops
from tuna_jax.hardware.chips import Chip
from tuna_jax.planning import collectives, compiler, cycle_estimates, roofline
from tuna_jax.planning.abstract_programs import Planned
from tuna_jax.planning.stage import Experiment

Result = dict[str, Any]

PROFILED = 40  # Lines of a profile.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The devices that programs are planned for.

    Attributes:
      topology: name of a slice's topology.
      slices: number of slices.
      chip: kind of chip.
      mesh: over all devices.
    """

    topology: str
    slices: int
    chip: Chip
    mesh: Mesh

    @property
    def devices(self) -> int:
        """Number of JAX devices."""
        return self.mesh.devices.size

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.devices // self.chip.devices


def measure(
    experiment: Experiment,
    planned: Planned,
    target: Target,
    log: Callable[[str], None] = lambda _: None,
    profile: bool = False,
) -> Result:
    """Compiles a program and returns its memory, FLOPs, traffic and bounds, as plain values for JSON.

    `memory.parts` is computed from shapes and shardings; the rest of `memory` is the compiler's estimate. `flops` are
    counted over the jaxpr. `network` is computed from the compiler's collectives, and `bound` from all of these and the
    chip's published figures. Only `compiler.seconds` and `compiler.host_memory` are measured, on this machine. Bytes
    and bounds are per device; FLOPs, rows, tokens and pictures are over all devices. With `profile` the result also has
    the `PROFILED` most expensive lines of `cycle_estimates.profile`.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's error, unless it is a lack of device memory.
    """
    start = time.monotonic()
    traced = planned.jitted.trace(*planned.arguments)
    counted = flops.count(traced.jaxpr)
    log(f"{name_of(planned)}: traced in {time.monotonic() - start:.0f} s, compiling")
    compiled = compiler.compile_lowered(traced.lower(), profile)
    useful = counted
    if planned.plain is not None:
        plain = planned.plain()
        useful = flops.count(plain.jitted.trace(*plain.arguments).jaxpr)
    usable = compiled.capacity or target.chip.usable / target.chip.devices
    result: Result = {
        "experiment": experiment.name,
        "program": planned.kind,
        "stream": planned.stream,
        "share": planned.share,
        "topology": target.topology,
        "slices": target.slices,
        "chips": target.chips,
        "devices": target.devices,
        "mesh": dict(target.mesh.shape),
        "remat": experiment.config.remat,
        "attention": experiment.config.attention_backend,
        "steps": experiment.settings.steps,
        "rows": planned.rows,
        "tokens": planned.tokens,
        "pictures": planned.pictures,
        "memory": {
            "fits": compiled.fits,
            "peak": compiled.peak,
            "usable": usable,
            "spare": 1 - compiled.peak / usable,
            "parts": planned.parts,
            "arguments": compiled.arguments,
            "outputs": compiled.outputs,
            "aliased": compiled.aliased,
            "temporaries": compiled.temporaries,
        },
        "flops": {"counted": counted, "useful": useful},
        "compiler": {
            "seconds": compiled.seconds,
            "host_memory": compiled.host_memory,
            "jax": jax.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
        },
    }
    if compiled.fits:
        traffic = collectives.traffic(compiled.text, target.devices, target.slices)
        result["network"] = dataclasses.asdict(traffic)
        work = roofline.Work(
            flops=counted / target.devices,
            model_flops=useful / target.devices,
            memory=memory_traffic(compiled, traffic),
            network=traffic.total,
            dcn=traffic.dcn,
        )
        if profile and not compiled.estimates:
            log(
                f"{name_of(planned)}: the compiler has no estimates for this program, so there is no profile"
            )
        elif profile:
            costs = cycle_estimates.profile(compiled.estimates)[:PROFILED]
            result["profile"] = [dataclasses.asdict(cost) for cost in costs]
        result["memory"]["traffic"] = work.memory
        result["bound"] = dataclasses.asdict(roofline.bound(work, target.chip))
    return result


def memory_traffic(compiled: compiler.Compiled, traffic: collectives.Traffic) -> float:
    """The least bytes that a run moves to and from a device's memory: arguments are read, outputs are written, and
    temporaries and the results of collectives are written once and read once."""
    return compiled.arguments + compiled.outputs + 2 * (compiled.temporaries + traffic.moved)


def name_of(planned: Planned) -> str:
    """'train draw', 'sample', 'decode'."""
    return f"{planned.kind} {planned.stream}".strip()
