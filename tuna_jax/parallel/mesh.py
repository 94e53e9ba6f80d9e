"""One mesh with five axes for every run, from a laptop's single device to several slices of a pod.

    slices    slices of TPUs that only the data-centre network joins; the batch is split over them
    data      copies of the model, each with its own part of the batch
    fsdp      parameters and optimizer state are split; so is the batch
    context   the sequence is split
    tensor    heads and MLP features are split

An axis of size 1 costs nothing, so code is written for all five.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("slices", "data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Size of each mesh axis. One of them may be -1: as many as there are devices left."""

    slices: int = 1
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


def sizes(settings: MeshSettings, devices: int) -> tuple[int, int, int, int, int]:
    """The five sizes for this many devices, -1 resolved.

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
    """The mesh over `devices` (default: all devices of all processes).

    The last axes are nearest neighbours. Of TPUs in several slices every slice is one index of the
    axis `slices`, so that no other axis crosses the slow network between them; elsewhere `slices`
    splits the devices in their order.

    Raises:
      ValueError: the sizes do not fit the devices, or `mesh.slices` is not the number of slices that
        the TPUs lie in.
    """
    devices = jax.devices() if devices is None else devices
    shape = sizes(settings or MeshSettings(), len(devices))
    types = (AxisType.Auto,) * len(AXES)
    # Other platforms number "slices" too, by hosts, where nothing asks for a layout.
    found = {d.slice_index for d in devices if d.platform == "tpu" and hasattr(d, "slice_index")}
    if found and len(found) != shape[0]:
        raise ValueError(
            f"mesh.slices is {shape[0]} and the TPUs lie in {len(found)} slices; set "
            f"mesh.slices={len(found)}"
        )
    # A slice's own axes (4 x 4 x 4) need not be products of ours (2 x 32): then one of them is shared.
    if shape[0] == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    elif found:
        within, between = (1, *shape[1:]), (shape[0], 1, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=types)
