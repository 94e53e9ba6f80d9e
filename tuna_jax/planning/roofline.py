"""The shortest time a step can take by a chip's published figures, and what binds it: arithmetic, no measurement."""

from __future__ import annotations

import dataclasses

from tuna_jax.hardware.chips import Chip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step asks of one JAX device.

    Attributes:
      flops: all that it computes. model_flops: without what it computes again.
      memory: bytes to and from HBM. network: bytes sent within the slice. dcn: bytes sent to other slices.
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
      compute, memory, network, dcn: seconds; 'network' takes all links of a chip as used at once.
      step: the largest of them: no step is faster, if all the rest hides behind it.
      unhidden: their sum: the same if nothing hides behind anything.
      binds: which is the largest.
      mfu: share of the chip's peak that useful FLOPs reach in a step of `step` seconds; no step has more.
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
