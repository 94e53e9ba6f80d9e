"""What every measurement of speed shares: sides that take turns, the machine's own rate, and a table of what came out.

In each round the machine multiplies two matrices for a moment, and then every side runs once. So a machine that is busy
for a while, or clocks down, hits all of them; what is told are medians over the rounds, and a ratio is the median of
the rounds' ratios. A side's share is the FLOPs of its matrix products (hardware/flops.py) a second, by the rate at
which the machine multiplied in that round.
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

WINDOW = 0.3  # seconds that the machine's rate is measured for, a round
MATRIX = 2048  # rows of the matrices that it multiplies; four times as many on an accelerator


@dataclasses.dataclass(frozen=True)
class Side:
    """One way of doing a thing.

    Attributes:
      name: what it is called.
      run: does it once, and returns when it is done.
      flops: of its matrix products; 0: nobody counted.
      memory: bytes that it needs at once, parameters included; 0: not known.
      part: how much of the thing `run` does; its seconds are divided by that.
      work: units of `unit` that the thing makes.
      processor: seconds that the process which runs it has spent on all cores so far.
    """

    name: str
    run: Callable[[], Any]
    flops: int = 0
    memory: int = 0
    part: float = 1.0
    work: int = 1
    processor: Callable[[], float] = time.process_time


@dataclasses.dataclass(frozen=True)
class Measured:
    """A side's numbers; medians over the rounds.

    Attributes:
      name: of the side.
      seconds: for the whole thing, scaled if only a part was run.
      processor: seconds of all cores together that its process spent on it: on a busy machine the better measure.
      rate: units of work a second.
      flops, memory, part: as `Side` has them.
      share: of the machine's matmul rate; 0 where FLOPs are not counted.
      ratio: its seconds to those of the first side: how many times as fast that is.
      rounds: seconds of each.
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
    """Sides that do the same thing, ours first.

    Attributes:
      name: the thing. unit: what a unit of its work is.
      sides: what was measured.
      matmul: FLOPs a second of the machine, the median over the rounds. rates: of each round.
      notes: what else was seen, for JSON.
    """

    name: str
    unit: str
    sides: tuple[Measured, ...]
    matmul: float
    rates: tuple[float, ...]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure(
    name: str, unit: str, sides: Sequence[Side], rounds: int, notes: dict[str, Any] | None = None
) -> Group:
    """Runs every side once to warm up, then `rounds` times in turn."""
    multiply = _matmul()
    for side in sides:
        side.run()
    seconds: list[list[float]] = []
    processor: list[list[float]] = []
    rates = []
    for _ in tqdm(range(rounds), desc=name, unit="round", disable=None):
        rates.append(multiply())
        spent = [_seconds(side) for side in sides]
        seconds.append([s.wall / side.part for s, side in zip(spent, sides, strict=True)])
        processor.append([s.processor / side.part for s, side in zip(spent, sides, strict=True)])
    measured = []
    for index, side in enumerate(sides):
        own = [taken[index] for taken in seconds]
        shares = [side.flops / s / rate for s, rate in zip(own, rates, strict=True)]
        ratios = [taken[index] / taken[0] for taken in seconds]
        middle = statistics.median(own)
        measured.append(
            Measured(
                side.name,
                middle,
                statistics.median(spent[index] for spent in processor),
                side.work / middle,
                side.flops,
                side.memory,
                side.part,
                statistics.median(shares),
                statistics.median(ratios),
                tuple(own),
            )
        )
    return Group(name, unit, tuple(measured), statistics.median(rates), tuple(rates), notes or {})


def compiled(name: str, function: Callable[..., Any], *arguments: Any, **more: Any) -> Side:
    """A side that runs a traceable function as one program, compiled here, on these arguments.

    Args:
      name: of the side.
      function: of arrays, to arrays.
      arguments: arrays; shapes will not do.
      **more: attributes of the side.
    """
    program = jax.jit(function).lower(*arguments).compile()
    counted = flops.count(jax.make_jaxpr(function)(*arguments))
    given: dict[str, Any] = {"flops": counted, "memory": program_memory(program)} | more
    return Side(name, lambda: jax.block_until_ready(program(*arguments)), **given)


def program_memory(program: Any) -> int:
    """Bytes of a compiled program's arguments, results and temporaries; 0 where the compiler does not tell."""
    told = program.memory_analysis()
    if told is None:
        return 0
    fields = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(told, field) for field in fields) - told.alias_size_in_bytes


def random_model(name: str, dtype: str = "", weights: str = "") -> tuple[TunaConfig, Params]:
    """A preset with random parameters, in which nothing is zero that a trained model has not zero.

    Args:
      name: the preset.
      dtype: of activations and matrix products; empty: the preset's.
      weights: dtype that matrices are held in; empty: float32. Vectors are float32 always.
    """
    config = preset(name)
    if dtype:
        config = dataclasses.replace(config, compute_dtype=dtype)

    @jax.jit
    def make(key: jax.Array) -> Params:
        leaves, tree = jax.tree.flatten(tuna.init(config, key))
        # A fresh model ends in zeros (AdaLN-Zero): it would draw noise, however wrong its layers.
        moved = [
            leaf + 0.02 * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)
            for number, leaf in enumerate(leaves)
        ]
        held = [leaf.astype(weights) if weights and leaf.ndim > 1 else leaf for leaf in moved]
        return jax.tree.unflatten(tree, held)

    return config, make(jax.random.key(0))


def table(groups: Sequence[Group]) -> str:
    """The groups for a person."""
    lines = []
    for group in groups:
        lines += [
            f"{group.name}   (the machine multiplies at {group.matmul / 1e9:.0f} GFLOP/s)",
            f"  {'':<30}{'seconds':>9}{'of cores':>10}{group.unit + '/s':>10}"
            f"{'GFLOP':>9}{'of rate':>9}{'MB':>8}{'ratio':>8}",
        ]
        for side in group.sides:
            counted = (f"{side.flops / 1e9:.0f}", f"{side.share:.0%}") if side.flops else ("", "")
            held = f"{side.memory / 1e6:.0f}" if side.memory else ""
            name = side.name if side.part == 1 else f"{side.name} (scaled)"
            lines.append(
                f"  {name:<30}{side.seconds:>9.3f}{side.processor:>10.3f}{side.rate:>10.2f}"
                f"{counted[0]:>9}{counted[1]:>9}{held:>8}{side.ratio:>8.2f}"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def record(groups: Sequence[Group], settings: Any) -> dict[str, Any]:
    """The groups with what they were measured on, for JSON."""
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
    """Raises ValueError for a setting below its least value."""
    for key, value in least.items():
        if getattr(settings, key) < value:
            raise ValueError(f"{key} is {getattr(settings, key)}; it is at least {value}")


def numbers(text: str, key: str) -> tuple[int, ...]:
    """'325,1024' as numbers; raises ValueError that names the setting."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{key} is {text!r}; give whole numbers with commas, such as 325,1024")
    return tuple(int(part) for part in parts)


class _Spent(NamedTuple):
    """Seconds by the clock, and of a side's process on all cores."""

    wall: float
    processor: float


def _seconds(side: Side) -> _Spent:
    spent, begin = side.processor(), time.perf_counter()
    side.run()
    return _Spent(time.perf_counter() - begin, side.processor() - spent)


def _matmul() -> Callable[[], float]:
    """What measures the FLOPs a second of products of square matrices: bfloat16 on an accelerator, else float32."""
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
