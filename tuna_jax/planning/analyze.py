"""One program on one topology: compiled, counted, and held against the chip's figures."""

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
    """Where programs are planned for.

    Attributes:
      topology: its name. slices: how many of it. chip: its kind. mesh: over all its devices.
    """

    topology: str
    slices: int
    chip: Chip
    mesh: Mesh

    @property
    def devices(self) -> int:
        """JAX devices."""
        return self.mesh.devices.size

    @property
    def chips(self) -> int:
        """Chips."""
        return self.devices // self.chip.devices


def measure(
    experiment: Experiment,
    planned: Planned,
    target: Target,
    say: Callable[[str], None] = lambda _: None,
    profile: bool = False,
) -> Result:
    """Compiles a program and says all there is to know of it, as plain values for JSON.

    `memory`: `parts` is arithmetic on shapes and shardings; the rest is the compiler's estimate. `flops` is counted
    over the jaxpr. `network` is arithmetic on the compiler's collectives; `bound` is arithmetic on all of these and
    the chip's published figures. Only `compiler.seconds` and `compiler.host_memory` are measurements, of this machine.
    Bytes and bounds are those of one device; FLOPs, rows, tokens and pictures of all. With `profile` the result has the
    `PROFILED` costliest lines of `cycles.profile`, too.

    Raises:
      jax.errors.JaxRuntimeError: the compiler's own error, unless the program only does not fit.
    """
    start = time.monotonic()
    traced = planned.jitted.trace(*planned.arguments)
    counted = flops.count(traced.jaxpr)
    say(f"{name_of(planned)}: traced in {time.monotonic() - start:.0f} s, compiling")
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
            say(
                f"{name_of(planned)}: the compiler gives no estimates of this program, so no profile"
            )
        elif profile:
            costs = cycle_estimates.profile(compiled.estimates)[:PROFILED]
            result["profile"] = [dataclasses.asdict(cost) for cost in costs]
        result["memory"]["traffic"] = work.memory
        result["bound"] = dataclasses.asdict(roofline.bound(work, target.chip))
    return result


def memory_traffic(compiled: compiler.Compiled, traffic: collectives.Traffic) -> float:
    """The least bytes that a run moves to and from a device's memory: arguments read, outputs written, temporaries and
    what collectives bring written once and read once."""
    return compiled.arguments + compiled.outputs + 2 * (compiled.temporaries + traffic.moved)


def name_of(planned: Planned) -> str:
    """'train draw', 'sample', 'decode'."""
    return f"{planned.kind} {planned.stream}".strip()
