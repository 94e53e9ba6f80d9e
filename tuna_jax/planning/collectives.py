"""Bytes that every chip sends to others in one run of a compiled program, by kind of collective.

Computed from what the compiler planned: the sizes and groups of its collectives, how often they run, and what each chip
of a ring of n chips sends:

    all-gather          result * (n - 1) / n
    reduce-scatter      operand * (n - 1) / n
    all-reduce          2 * operand * (n - 1) / n      (a reduce-scatter and an all-gather)
    all-to-all          result * (n - 1) / n
    collective-permute  result

The TPU compiler writes a reduce-scatter as a fusion called all-reduce-scatter around an all-reduce. An asynchronous
collective stands in several computations: in the fusion that starts it, in those that overlap with it, and in the one
that ends it; all have its channel, by which it is counted once. The compiler passes traffic between slices to the
host's runtime: a `send` of a chip's part of the array, marked with the kind of collective.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from tuna_jax.compat import hlo_text
from tuna_jax.planning import hlo

KINDS = hlo_text.COLLECTIVES


@dataclasses.dataclass
class Traffic:
    """The bytes that a chip sends in one run of a program.

    Attributes:
      bytes: within the slice, by kind.
      count: collectives that run, by kind.
      moved: bytes of their results in the chip's own memory.
      dcn: bytes to other slices.
    """

    bytes: dict[str, float]
    count: dict[str, int]
    moved: float = 0.0
    dcn: float = 0.0

    @property
    def total(self) -> float:
        """Bytes over the links within a slice."""
        return sum(self.bytes.values())


def traffic(text: str, devices: int, slices: int = 1) -> Traffic:
    """The traffic of an optimised program.

    Args:
      text: the compiler's text of the program.
      devices: number of devices that it runs on, ordered by slice.
      slices: number of slices.

    Raises:
      ValueError: the text has no program.
    """
    computations, entry = hlo.computations(text)
    result = Traffic(dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0))
    scattering = {
        name
        for lines in computations.values()
        for line in lines
        if line.lstrip("%").startswith(hlo_text.SCATTERING_FUSION)
        for name in hlo_text.CALLS.findall(line)
    }
    by_channel: dict[str, tuple[str, int, bool]] = {}
    for name, times in hlo.runs(computations, entry).items():
        fused = name in scattering or name.startswith(hlo_text.SCATTERING_FUSION)
        for line in computations.get(name, ()):
            _count_transfer(line, times, slices, result)
            if not hlo_text.COLLECTIVE.match(line):
                continue
            channel = hlo_text.CHANNEL.search(line)
            if channel is None:
                _count(line, times, fused, devices, slices, result)
                continue
            first, most, scatters = by_channel.get(channel[1], (line, times, fused))
            by_channel[channel[1]] = first, max(most, times), scatters or fused
    for line, times, fused in by_channel.values():
        _count(line, times, fused, devices, slices, result)
    return result


def _count_transfer(line: str, times: int, slices: int, result: Traffic) -> None:
    """A collective between corresponding chips of all slices, by the hosts' runtime."""
    match = hlo_text.TRANSFER.match(line)
    if not match:
        return
    kind = match[2].lower().replace("_", "-")
    size = _bytes(*hlo_text.ARRAY.findall(match[1])[0])
    share = (slices - 1) / slices
    factor = {"all-reduce": 2 * share, "all-gather": slices - 1}.get(kind)
    if factor is None:
        factor = share if kind in ("reduce-scatter", "all-to-all") else 1.0
    result.count[kind] = result.count.get(kind, 0) + times
    result.dcn += times * size * factor


def _count(
    line: str, times: int, scattered: bool, devices: int, slices: int, result: Traffic
) -> None:
    match = hlo_text.COLLECTIVE.match(line)
    if not match:
        return
    kind = match[3].removeprefix("ragged-")
    group, across = _group(line, devices, slices)
    if group < 2:
        return
    size = _size(match[2], kind, started=bool(match[4]))
    share = (group - 1) / group
    if kind == "all-reduce" and scattered:
        kind, sent = "reduce-scatter", size * share
    elif kind == "all-reduce":
        sent = 2 * size * share
    elif kind == "reduce-scatter":
        sent = size * (group - 1)
    elif kind == "collective-permute":
        sent = size
    else:
        sent = size * share
    result.count[kind] += times
    result.moved += times * size
    if across > 1:
        # It runs within each slice first, so that only a part of the array is sent between slices.
        inside = group // across
        outside = sent / share * (across - 1) / across / max(inside, 1)
        result.dcn += times * outside
        sent = sent / share * (inside - 1) / inside if inside > 1 else 0.0
    result.bytes[kind] += times * sent


def _size(shape: str, kind: str, started: bool) -> float:
    """Bytes of a collective's result. The start of an asynchronous one returns its operands and then its results."""
    arrays = [_bytes(*match) for match in hlo_text.ARRAY.findall(shape)]
    if not started or kind == "all-reduce" or len(arrays) < 2:
        return sum(arrays)
    if kind == "collective-permute":
        return arrays[1]
    # Operands and results, possibly followed by a few context words of 4 bytes each.
    arrays = [size for size in arrays if size > 4]
    return sum(arrays[len(arrays) // 2 :])


def _bytes(kind: str, extents: str) -> float:
    bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
    return math.prod(int(extent) for extent in extents.split(",") if extent) * bits / 8


def _group(line: str, devices: int, slices: int) -> tuple[int, int]:
    """The number of chips in one group, and the number of slices that they are in."""
    iota, explicit = hlo_text.IOTA_GROUPS.search(line), hlo_text.EXPLICIT_GROUPS.search(line)
    if pairs := hlo_text.PAIRS.search(line):
        ids = [[int(i) for i in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
        return 2, max((_slices(pair, devices, slices) for pair in ids), default=1)
    if mesh := hlo_text.MESH_GROUPS.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        taken = re.findall(r"'(\w+)'", mesh[2])
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        first = ids[tuple(slice(None) if name in taken else 0 for name in sizes)].ravel().tolist()
        return len(first), _slices(first, devices, slices)
    if iota:
        shape, extents = _numbers(iota[1]), _numbers(iota[2])
        order = _numbers(iota[3]) if iota[3] else tuple(range(len(extents)))
        ids = np.arange(math.prod(extents)).reshape(extents).transpose(order).reshape(shape)
        return shape[-1], _slices(list(ids.reshape(-1, shape[-1])[0]), devices, slices)
    if explicit:
        first = re.findall(r"\{([\d,]+)\}", explicit[1])
        members = [int(i) for i in first[0].split(",")] if first else list(range(devices))
        return len(members), _slices(members, devices, slices)
    return devices, slices


def _slices(members: list[int], devices: int, slices: int) -> int:
    return len({member * slices // devices for member in members})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
