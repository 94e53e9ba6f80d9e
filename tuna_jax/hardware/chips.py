"""The vendor's figures of TPU chips, from which planning computes its bounds.

Source: the pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)" of cloud.google.com/tpu/docs. The usable part
of the memory is what the compiler reports when a program does not fit ("... of 15.75G hbm").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

GIB = 2**30

# Bandwidth between slices, which is not published; 25 GB/s per host is 200 Gbit/s, the usual network card of a TPU
# host.
DCN_BYTES_A_HOST = 25e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The figures of one chip.

    Attributes:
      name: as in the names of topologies.
      peak: bfloat16 FLOP/s.
      memory: HBM in bytes.
      usable: bytes of HBM that a program can use; all of it where the compiler has not reported a number.
      bandwidth: of HBM, bytes/s.
      network: bytes/s that a chip can send to other chips of its slice over all of its links.
      chips_a_host: chips that share a host and its network card.
      kinds: JAX's names of its devices, `device_kind`.
      devices: JAX devices per chip; each has its share of every figure.
    """

    name: str
    peak: float
    memory: float
    usable: float
    bandwidth: float
    network: float
    chips_a_host: int
    kinds: tuple[str, ...]
    devices: int = 1

    @property
    def dcn(self) -> float:
        """Bytes/s of a chip's share of its host's network card; an assumption, see `DCN_BYTES_A_HOST`."""
        return DCN_BYTES_A_HOST / self.chips_a_host


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e",
            peak=197e12,
            memory=16 * GIB,
            usable=15.75 * GIB,
            bandwidth=819e9,
            network=1600e9 / 8,
            chips_a_host=4,
            kinds=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            name="v5p",
            peak=459e12,
            memory=95 * GIB,
            usable=95 * GIB,
            bandwidth=2765e9,
            network=4800e9 / 8,
            chips_a_host=4,
            kinds=("TPU v5", "TPU v5p"),
        ),
        Chip(
            name="v6e",
            peak=918e12,
            memory=32 * GIB,
            usable=31.25 * GIB,
            bandwidth=1640e9,
            network=3584e9 / 8,
            chips_a_host=4,
            kinds=("TPU v6 lite", "TPU v6e"),
        ),
        Chip(
            name="tpu7x",
            peak=2307e12,
            memory=192 * GIB,
            usable=192 * GIB,
            bandwidth=7380e9,
            network=9600e9 / 8,
            chips_a_host=4,
            kinds=("TPU7x",),
            devices=2,
        ),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as 'v5e:4x4'.

    Raises:
      ValueError: the kind of chip is not in the table.
    """
    kind = topology.split(":")[0]
    if kind not in CHIPS:
        raise ValueError(
            f"--topology={topology}: no chip is called {kind!r}; the known chips are "
            f"{', '.join(CHIPS)}, as in v5e:4x4 or v5p:4x4x4"
        )
    return CHIPS[kind]


def matching(kind: str, names: Iterable[str]) -> str | None:
    """The name that a JAX device's `device_kind` is, or begins with; the longest, since 'TPU v5 lite' is no 'TPU v5'.

    After a name there may be further words, as in 'NVIDIA H200 NVL'.
    """
    fitting = [name for name in names if kind == name or kind.startswith(f"{name} ")]
    return max(fitting, key=len, default=None)


def chip_of_device(kind: str) -> Chip | None:
    """The chip of a JAX device by its `device_kind`; None if it is not in the table, as GPUs and CPUs are not."""
    by_kind = {name: chip for chip in CHIPS.values() for name in chip.kinds}
    name = matching(kind, by_kind)
    return by_kind[name] if name else None
