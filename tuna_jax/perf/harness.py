"""Shared by all measurements of speed: interleaved variants, the machine's own rate, and tables of the timings.

In each round the machine multiplies two matrices for a moment, and then every variant runs once, so that a machine that
is busy or clocks down for a while affects all of them. Reported are medians over the rounds; a ratio is the median of
the rounds' ratios. A variant's share is the FLOPs per second of its matrix products (hardware/flops.py) divided by the
rate at which the machine multiplied matrices in that round.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from tuna_jax.config import TunaConfig, preset
from tuna_jax.hardware import flops
from tuna_jax.models import tuna
from tuna_jax.models.layers import Params

WINDOW = 0.3  # Seconds per round for which the machine's rate is measured.
MATRIX = 2048  # Rows of the matrices that it multiplies; four times as many on an accelerator.


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of doing a task.

    Attributes:
      name: in tables.
      run: does the task once, and returns when it is done.
      flops: of its matrix products; 0: not counted.
      memory: peak memory in bytes, including parameters; 0: unknown.
      part: the part of the task that `run` does; its seconds are divided by it.
      work: units of work of the whole task.
      processor: returns the seconds that the process of the variant has spent on all cores so far.
    """

    name: str
    run: Callable[[], Any]
    flops: int = 0
    memory: int = 0
    part: float = 1.0
    work: int = 1
    processor: Callable[[], float] = time.process_time


@dataclasses.dataclass(frozen=True)
class Timing:
    """The timing of a variant; medians over the rounds.

    Attributes:
      name: of the variant.
      seconds: for the whole task, scaled if only a part was run.
      processor: seconds on all cores that its process spent: on a busy machine the better measure.
      rate: units of work per second.
      flops, memory, part: as in `Variant`.
      share: of the machine's rate of matrix products; 0 if FLOPs are not counted.
      ratio: its seconds divided by those of the first variant.
      rounds: seconds of each round.
    """

    name: str
    seconds: float
    processor: float
    rate: float
    flops: int
    memory: int
    part: float
    share: float
    ratio: float
    rounds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Timings of variants of one task, ours first.

    Attributes:
      name: of the task.
      unit: of its work.
      variants: their timings.
      matmul: FLOPs per second of the machine, the median over the rounds.
      rates: the same for each round.
      notes: other results, for JSON.
    """

    name: str
    unit: str
    variants: tuple[Timing, ...]
    matmul: float
    rates: tuple[float, ...]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(
    name: str,
    unit: str,
    variants: Sequence[Variant],
    rounds: int,
    notes: dict[str, Any] | None = None,
) -> Group:
    """Runs every variant once to warm up, then all of them in turn, `rounds` times."""
    multiply = _matmul()
    for variant in variants:
        variant.run()
    seconds: list[list[float]] = []
    processor: list[list[float]] = []
    rates = []
    for _ in tqdm(range(rounds), desc=name, unit="round", disable=None):
        rates.append(multiply())
        spent = [_seconds(variant) for variant in variants]
        seconds.append([s.wall / v.part for s, v in zip(spent, variants, strict=True)])
        processor.append([s.processor / v.part for s, v in zip(spent, variants, strict=True)])
    timings = []
    for index, variant in enumerate(variants):
        own = [taken[index] for taken in seconds]
        shares = [variant.flops / s / rate for s, rate in zip(own, rates, strict=True)]
        ratios = [taken[index] / taken[0] for taken in seconds]
        middle = statistics.median(own)
        timings.append(
            Timing(
                variant.name,
                middle,
                statistics.median(spent[index] for spent in processor),
                variant.work / middle,
                variant.flops,
                variant.memory,
                variant.part,
                statistics.median(shares),
                statistics.median(ratios),
                tuple(own),
            )
        )
    return Group(name, unit, tuple(timings), statistics.median(rates), tuple(rates), notes or {})


def compiled(
    name: str, function: Callable[..., Any], *arguments: Any, **attributes: Any
) -> Variant:
    """A variant that runs a traceable function as one compiled program on these arguments.

    Args:
      name: of the variant.
      function: takes and returns arrays.
      arguments: arrays, not shapes.
      **attributes: of the variant.
    """
    program = jax.jit(function).lower(*arguments).compile()
    counted = flops.count(jax.make_jaxpr(function)(*arguments))
    measured: dict[str, Any] = {"flops": counted, "memory": program_memory(program)}
    run = lambda: jax.block_until_ready(program(*arguments))
    return Variant(name, run, **measured | attributes)


def program_memory(program: Any) -> int:
    """Bytes of a compiled program's arguments, results and temporaries; 0 if the compiler does not report them."""
    memory = program.memory_analysis()
    if memory is None:
        return 0
    fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, field) for field in fields) - memory.alias_size_in_bytes


def random_model(name: str, dtype: str = "", weights: str = "") -> tuple[TunaConfig, Params]:
    """A preset with random parameters, none of which are zero.

    Args:
      name: the preset.
      dtype: of activations and matrix products; empty: as in the preset.
      weights: dtype of the parameter matrices; empty: float32. Vectors are always float32.
    """
    config = preset(name)
    if dtype:
        config = dataclasses.replace(config, compute_dtype=dtype)

    @jax.jit
    def make(key: jax.Array) -> Params:
        leaves, tree = jax.tree.flatten(tuna.init(config, key))
        # A fresh model predicts zeros (AdaLN-Zero), whatever its layers compute.
        perturbed = [
            leaf + 0.02 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)
            for number, leaf in enumerate(leaves)
        ]
        cast = [leaf.astype(weights) if weights and leaf.ndim > 1 else leaf for leaf in perturbed]
        return jax.tree.unflatten(tree, cast)

    return config, make(jax.random.key(0))


def table(groups: Sequence[Group]) -> str:
    """The groups as a table for a terminal."""
    lines = []
    for group in groups:
        lines += [
            f"{group.name}   (the machine multiplies at {group.matmul / 1e9:.0f} GFLOP/s)",
            f"  {'':<30}{'seconds':>9}{'CPU s':>10}{group.unit + '/s':>10}"
            f"{'GFLOP':>9}{'of rate':>9}{'MB':>8}{'ratio':>8}",
        ]
        for timing in group.variants:
            work = ("", "")
            if timing.flops:
                work = (f"{timing.flops / 1e9:.0f}", f"{timing.share:.0%}")
            memory = f"{timing.memory / 1e6:.0f}" if timing.memory else ""
            name = timing.name if timing.part == 1 else f"{timing.name} (scaled)"
            lines.append(
                f"  {name:<30}{timing.seconds:>9.3f}{timing.processor:>10.3f}{timing.rate:>10.2f}"
                f"{work[0]:>9}{work[1]:>9}{memory:>8}{timing.ratio:>8.2f}"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def record(groups: Sequence[Group], settings: Any) -> dict[str, Any]:
    """The groups and the machine that they were measured on, for JSON."""
    device = jax.devices()[0]
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": device.device_kind,
            "devices": jax.device_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
        },
        "settings": dataclasses.asdict(settings),
        "groups": [dataclasses.asdict(group) for group in groups],
    }


def at_least(settings: Any, **least: int) -> None:
    """Raises ValueError if a setting is below its least value."""
    for key, value in least.items():
        if getattr(settings, key) < value:
            raise ValueError(f"{key} is {getattr(settings, key)}; it is at least {value}")


def numbers(text: str, key: str) -> tuple[int, ...]:
    """'325,1024' as numbers; raises a ValueError that names the setting."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"{key} is {text!r}; give whole numbers separated by commas, such as 325,1024"
        )
    return tuple(int(part) for part in parts)


class _Spent(NamedTuple):
    """Seconds of wall time, and of a variant's process on all cores."""

    wall: float
    processor: float


def _seconds(variant: Variant) -> _Spent:
    spent, begin = variant.processor(), time.perf_counter()
    variant.run()
    return _Spent(time.perf_counter() - begin, variant.processor() - spent)


def _matmul() -> Callable[[], float]:
    """Returns a function that measures FLOPs per second of products of square matrices: bfloat16 on an accelerator,
    else float32."""
    on_cpu = jax.default_backend() == "cpu"
    side, dtype = (MATRIX, jnp.float32) if on_cpu else (4 * MATRIX, jnp.bfloat16)
    a = jax.random.normal(jax.random.key(0), (side, side), dtype) / math.sqrt(side)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    jax.block_until_ready(product(a))

    def rate() -> float:
        begin, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - begin < WINDOW:
            jax.block_until_ready(product(a))
            done += 1
        return 2 * side**3 * done / (time.perf_counter() - begin)

    return rate
