"""Checks `step` and `data`: the chosen experiment's step and memory next to the prediction, and its input pipeline.

The experiment's own trainer opens model and data, and hands them to `Probe` in place of the training loop.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tuna_jax.diagnostics.context import Context, call_trainer
from tuna_jax.diagnostics.finding import PASS, SLOW, Finding
from tuna_jax.diagnostics.processes import Processes
from tuna_jax.hardware import flops
from tuna_jax.hardware.chips import GIB, Chip, chip_of_device
from tuna_jax.parallel import distributed
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.planning import analyze, collectives, compiler, roofline
from tuna_jax.training.step import NO_LIMITS
from tuna_jax.training.train_program import Program

MOST_OF_BOUND = 2.0
"""How many times the predicted time, in which nothing overlaps, a step may take before it is slow."""
_WARM, _STEPS, _BATCHES = 2, 20, 50  # Steps before the clock starts; most steps and batches on it.
_FEWEST, _SECONDS = 4, 5.0  # At least this number of steps or batches, and more within this time.


@dataclasses.dataclass(frozen=True)
class Step:
    """A measured step of this process's devices.

    Attributes:
      seconds: of one step, the median.
      rows, tokens: of a batch, over all processes.
      memory: most bytes in use on a device so far; None: the platform does not say.
      compiled: the compiler's numbers.
      flops: of a step over all devices, as computed and without rematerialisation; 0 if they were not counted.
      devices: number of devices.
      slices: of them.
      stream: the name of the batch's stream.
    """

    seconds: float
    rows: int
    tokens: int
    memory: int | None
    compiled: compiler.Compiled
    flops: tuple[int, int]
    devices: int
    slices: int
    stream: str


@dataclasses.dataclass(frozen=True)
class Data:
    """A measured input pipeline of this process.

    Attributes:
      seconds: of one batch.
      rows: of this process's part of a batch.
    """

    seconds: float
    rows: int


class Probe:
    """Takes the place of the training loop: measures the step, then the input pipeline.

    Args:
      processes: that do the same.
      counts: whether FLOPs are counted, which takes as long as tracing the step twice.
    """

    def __init__(self, processes: Processes, counts: bool) -> None:
        self._processes, self._counts = processes, counts
        self.step: Step | None = None
        self.data: Data | None = None

    def __call__(
        self,
        settings: Any,
        config: Any,
        workdir: Any,
        iterator: Any,
        *,
        tasks: tuple[str, ...],
        heads: Any = lambda batch: NO_LIMITS,
        vae_params: Any = None,
        base_params: Any = None,
        **unused: Any,
    ) -> bool:
        """`training.loop.train` in shape; trains nothing that is kept."""
        del workdir, unused
        batch = next(iterator)
        mesh = make_mesh(settings.mesh)
        distributed.batch_part(mesh)
        program = Program(settings, config, tasks, mesh)
        self.step = measure_step(
            program, batch, vae_params, heads(batch), self._processes, self._counts, base_params
        )
        self.data = measure_data(iterator, len(batch["tokens"]))
        return False


def measure_step(
    program: Program,
    batch: Mapping[str, np.ndarray],
    vae_params: Any,
    heads: Any,
    processes: Processes,
    counts: bool,
    base_params: Any = None,
) -> Step:
    """Compiles the step for a batch, and runs it on fresh random parameters; arguments as in `Program` and `Probe`."""
    mesh = program.mesh
    vae = None if vae_params is None else distributed.replicate(vae_params, mesh)
    frozen = program.frozen(vae, base_params)
    run = program.compile(batch, frozen, heads)
    processes.gather(None)  # One may take longer to compile than the others wait in a collective.
    state, placed = program.initial(base=base_params), program.place(batch)
    durations: list[float] = []

    def take(count: int) -> None:
        nonlocal state
        for _ in range(count):
            begun = time.perf_counter()
            state, window = run(state, placed, frozen)
            jax.block_until_ready(window)
            durations.append(time.perf_counter() - begun)

    take(_WARM)
    # As many as fit into the time, and the same number on all processes.
    fitting = int(_SECONDS / max(durations[-1], 1e-9))
    take(processes.gather(min(max(fitting, _FEWEST), _STEPS))[0])
    used = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    flops_of_step = (0, 0)
    if counts:
        traced = jax.make_jaxpr(lambda state, batch: program.step(state, batch, frozen, heads))
        counted = flops.count(traced(program.abstract_state, program.batch_shapes(batch)))
        flops_of_step = (counted, program.model_flops(batch, frozen, heads))
    return Step(
        seconds=statistics.median(durations[_WARM:]),
        rows=len(batch["tokens"]) * program.readers,
        tokens=batch["tokens"].size * program.readers,
        memory=max((number for number in used if number), default=None),
        compiled=compiler.described(run),
        flops=flops_of_step,
        devices=mesh.size,
        slices=mesh.shape["slices"],
        stream=program.tasks[int(batch["stream"][0])],
    )


def measure_data(iterator: Any, rows: int) -> Data:
    """Seconds of a batch when nothing else is computed; batches that wait already do not count."""
    for _ in range(_FEWEST):
        next(iterator)
    begun, count = time.perf_counter(), 0
    while count < _FEWEST or (count < _BATCHES and time.perf_counter() - begun < _SECONDS):
        next(iterator)
        count += 1
    return Data((time.perf_counter() - begun) / count, rows)


def step(context: Context) -> Finding:
    """The step of the chosen experiment next to what the chip should do."""
    probe = _probe(context)
    assert probe.step is not None
    kind = jax.devices()[0].device_kind
    return step_finding(probe.step, chip_of_device(kind), kind)


def data(context: Context) -> Finding:
    """The input pipeline of the chosen experiment next to its step."""
    probe = _probe(context)
    assert probe.data is not None
    each = context.processes.gather(dataclasses.asdict(probe.data))
    seconds = None if probe.step is None else probe.step.seconds
    return data_finding([Data(**values) for values in each], context.processes.names, seconds)


def _probe(context: Context) -> Probe:
    """Both measurements, made once."""
    if "probe" not in context.kept:
        values = context.experiment()
        counts = chip_of_device(jax.devices()[0].device_kind) is not None
        probe = Probe(context.processes, counts)
        folder = f"{context.scratch}/experiment"
        call_trainer(context.trainer(values.get("kind")), values, folder, probe)
        context.kept["probe"] = probe
    return context.kept["probe"]


def step_finding(measured: Step, chip: Chip | None, kind: str) -> Finding:
    """Compares a step with its bound.

    Args:
      measured: the step.
      chip: None: there is no prediction.
      kind: JAX's name of the device.
    """
    memory = measured.compiled.peak if measured.memory is None else measured.memory
    text = (
        f"{measured.stream}: {measured.seconds:.3g} s per step of {measured.rows} rows, "
        f"{measured.tokens / measured.seconds:,.0f} tokens/s; memory {memory / GIB:.3g} GiB per device"
    )
    if measured.memory is None:
        text += " by the compiler"
    numbers: dict[str, Any] = {
        "seconds": measured.seconds,
        "rows": measured.rows,
        "tokens": measured.tokens,
        "memory": measured.memory,
        "compiler_memory": measured.compiled.peak,
        "flops": measured.flops,
    }
    if chip is None:
        text += f"\nno prediction exists for {kind}"
        return Finding(result=PASS, measured=text, numbers=numbers)
    bound, usable = predicted(measured, chip), chip.usable / chip.devices
    mfu = measured.flops[1] / measured.devices / (chip.peak / chip.devices) / measured.seconds
    text += (
        f"\npredicted {bound.step:.3g} s if all overlaps, {bound.unhidden:.3g} s if nothing does ({bound.binds} "
        f"binds); memory {measured.compiled.peak / GIB:.3g} of {usable / GIB:.4g} GiB; MFU {mfu:.0%}, at most "
        f"{bound.mfu:.0%}"
    )
    slow = measured.seconds > MOST_OF_BOUND * bound.unhidden
    return Finding(
        result=SLOW if slow else PASS,
        measured=text,
        mend=f"more than {MOST_OF_BOUND:g} times the prediction: check LIBTPU_INIT_ARGS (docs/pods.md), the checks "
        f"devices and collectives, and a profile of `tuna-jax train --profile_steps`; a small model is bound by neither"
        if slow
        else "",
        numbers=numbers | {"bound": dataclasses.asdict(bound), "mfu": mfu},
    )


def predicted(measured: Step, chip: Chip) -> roofline.Bound:
    """The bound that `tuna-jax plan` computes, of the program that was compiled here."""
    try:
        traffic = collectives.traffic(measured.compiled.text, measured.devices, measured.slices)
    except (
        ValueError
    ):  # Some large programs have no text: then the network is not in the prediction.
        traffic = collectives.Traffic({}, {})
    work = roofline.Work(
        flops=measured.flops[0] / measured.devices,
        model_flops=measured.flops[1] / measured.devices,
        memory=analyze.memory_traffic(measured.compiled, traffic),
        network=traffic.total,
        dcn=traffic.dcn,
    )
    return roofline.bound(work, chip)


def data_finding(each: Sequence[Data], names: Sequence[str], step_seconds: float | None) -> Finding:
    """Compares the slowest process's pipeline with the step.

    Args:
      each: of the processes.
      names: of them.
      step_seconds: of a step; None: not measured.
    """
    slowest = max(range(len(each)), key=lambda index: each[index].seconds)
    found = each[slowest]
    text = f"{found.rows / found.seconds:,.0f} examples/s, {found.seconds:.3g} s per batch"
    if len(each) > 1:
        text += f" on the slowest, {names[slowest]}"
    numbers = {
        "seconds_per_batch": [one.seconds for one in each],
        "rows": [one.rows for one in each],
    }
    if step_seconds is None:
        return Finding(result=PASS, measured=text, numbers=numbers)
    share = found.seconds / step_seconds
    slow = share > 1
    return Finding(
        result=SLOW if slow else PASS,
        measured=f"{text}: {share:.0%} of a step",
        mend="training would wait for data: raise config.data.threads or config.data.workers, or precompute latents "
        "(`tuna-jax encode-latents`)"
        if slow
        else "",
        numbers=numbers,
    )
