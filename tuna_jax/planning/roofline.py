"""The shortest time of a step by a chip's published figures, and the resource that binds it; nothing is measured."""

from __future__ import annotations

import dataclasses

from tuna_jax.hardware.chips import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one step on one JAX device.

    Attributes:
      flops: all that it computes.
      model_flops: without rematerialisation.
      memory: bytes to and from HBM.
      network: bytes sent within the slice.
      dcn: bytes sent to other slices.
    """

    flops: float
    model_flops: float
    memory: float
    network: float
    dcn: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """Seconds that each of four resources needs at its peak.

    Attributes:
      compute, memory, network, dcn: seconds; 'network' assumes that all links of a chip are used at once.
      step: the largest of them: the time of a step if all others are hidden behind it.
      unhidden: their sum: the time of a step if nothing overlaps.
      binds: the name of the largest.
      mfu: the share of the chip's peak that useful FLOPs reach in `step` seconds; an upper bound.
    """

    compute: float
    memory: float
    network: float
    dcn: float
    step: float
    unhidden: float
    binds: str
    mfu: float


def bound(work: Work, chip: Chip) -> Bound:
    """The bound of a step with this work on each JAX device of this kind of chip."""
    each = chip.devices
    seconds = {
        "compute": work.flops / (chip.peak / each),
        "memory": work.memory / (chip.bandwidth / each),
        "network": work.network / (chip.network / each),
        "dcn": work.dcn / (chip.dcn / each),
    }
    binds = max(seconds, key=lambda name: seconds[name])
    step = seconds[binds]
    return Bound(
        **seconds,
        step=step,
        unhidden=sum(seconds.values()),
        binds=binds,
        mfu=work.model_flops / (chip.peak / each * step) if step else 0.0,
    )
