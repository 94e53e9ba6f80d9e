"""One mesh with four axes for every run, from a laptop's single device to a pod.

    data      copies of the model, each with its own part of the batch
    fsdp      parameters and optimizer state are split; so is the batch
    context   the sequence is split
    tensor    heads and MLP features are split

An axis of size 1 costs nothing, so code is written for all four.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Size of each mesh axis. One of them may be -1: as many as there are devices left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ValueError(
                    f"mesh.{axis} is {size}; a size is at least 1, or -1 for what is left"
                )
        free = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(free) > 1:
            raise ValueError(f"mesh.{' and mesh.'.join(free)} are both -1; only one axis may be")


def sizes(settings: MeshSettings, devices: int) -> tuple[int, int, int, int]:
    """The four sizes for this many devices, -1 resolved.

    Raises:
      ValueError: the sizes do not multiply to the device count; says what they multiply to and what
        would fit.
    """
    wanted = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(size for size in wanted.values() if size != -1)
    described = " x ".join(f"{axis} {size}" for axis, size in wanted.items())
    if -1 in wanted.values():
        free = next(axis for axis, size in wanted.items() if size == -1)
        if devices % fixed:
            raise ValueError(
                f"the mesh {described} cannot be laid on {devices} devices: {devices} is not a "
                f"multiple of {fixed}, the product of the fixed axes. Choose sizes whose product "
                f"divides {devices}"
            )
        wanted[free] = devices // fixed
    elif fixed != devices:
        raise ValueError(
            f"the mesh {described} wants {fixed} devices and there are {devices}. Set one axis to "
            f"-1 to take what is left, or choose sizes that multiply to {devices}"
        )
    return tuple(wanted[axis] for axis in AXES)  # pyright: ignore[reportReturnType]


def make_mesh(settings: MeshSettings | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all devices of all processes), laid out so that the last
    axes are nearest neighbours."""
    devices = jax.devices() if devices is None else devices
    shape = sizes(settings or MeshSettings(), len(devices))
    return jax.make_mesh(shape, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))
