"""One mesh with five axes for every run, from a laptop's single device to several slices of a pod.

    slices    TPU slices that are connected only by the data-centre network; the batch is split over them
    data      copies of the model, each with its own part of the batch
    fsdp      splits parameters, optimizer state and the batch
    context   splits the sequence
    tensor    splits heads and MLP features

An axis of size 1 costs nothing, so all code is written for five axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("slices", "data", "fsdp", "context", "tensor")
CONTEXT_ATTENTION = ("ring", "gather")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Size of each mesh axis. One of them may be -1: the number of devices that the others leave.

    Attributes:
      slices, data, fsdp, context, tensor: the sizes.
      context_attention: how attention sees the parts of a sequence on other devices if `context` is not 1. 'ring': keys
        and values travel from device to device (`models/ring.py`). 'gather': each device gathers those of its whole
        sequences.
    """

    slices: int = 1
    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    context_attention: str = "ring"

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise ValueError(
                    f"mesh.{axis} is {size}; a size is at least 1, or -1 for all remaining devices"
                )
        if self.context_attention not in CONTEXT_ATTENTION:
            raise ValueError(
                f"mesh.context_attention is {self.context_attention!r}; choose one of {', '.join(CONTEXT_ATTENTION)}"
            )
        free = [axis for axis in AXES if getattr(self, axis) == -1]
        if len(free) > 1:
            raise ValueError(f"mesh.{' and mesh.'.join(free)} are -1; at most one axis may be")


def sizes(settings: MeshSettings, devices: int) -> tuple[int, int, int, int, int]:
    """The five sizes for this number of devices, with -1 resolved.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    requested = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(size for size in requested.values() if size != -1)
    described = " x ".join(f"{axis} {size}" for axis, size in requested.items())
    if -1 in requested.values():
        free = next(axis for axis, size in requested.items() if size == -1)
        if devices % fixed:
            raise ValueError(
                f"the mesh {described} does not fit {devices} devices: {devices} is not a multiple of "
                f"{fixed}, the product of the fixed axes. Choose sizes whose product divides {devices}"
            )
        requested[free] = devices // fixed
    elif fixed != devices:
        raise ValueError(
            f"the mesh {described} requires {fixed} devices and there are {devices}. Set one axis to "
            f"-1, for all remaining devices, or choose sizes whose product is {devices}"
        )
    return tuple(requested[axis] for axis in AXES)  # pyright: ignore[reportReturnType]


def settings_of(values: Mapping[str, Any]) -> MeshSettings:
    """Settings from a mapping, such as `config.mesh` or the sizes of `--mesh`; missing keys have defaults."""
    return MeshSettings(**values)


def make_mesh(settings: MeshSettings | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all devices of all processes).

    Neighbours on the last axes are physical neighbours. With TPUs in several slices, every slice is one index of the
    axis `slices`, so that no other axis crosses the slow network between slices; on other platforms `slices` splits the
    devices in their order.

    Raises:
      ValueError: the sizes do not fit the devices, or `mesh.slices` is not the number of slices of the TPUs.
    """
    devices = jax.devices() if devices is None else devices
    shape = sizes(settings or MeshSettings(), len(devices))
    types = (AxisType.Auto,) * len(AXES)
    # Other platforms have a `slice_index` too, which numbers hosts and does not matter for the layout.
    tpu_slices = {
        d.slice_index for d in devices if d.platform == "tpu" and hasattr(d, "slice_index")
    }
    if tpu_slices and len(tpu_slices) != shape[0]:
        raise ValueError(
            f"mesh.slices is {shape[0]} and the TPUs are in {len(tpu_slices)} slices; set "
            f"mesh.slices={len(tpu_slices)}"
        )
    # A slice's physical axes (4 x 4 x 4) need not be products of the mesh's (2 x 32): then one of them is shared.
    if shape[0] == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    elif tpu_slices:
        within, between = (1, *shape[1:]), (shape[0], 1, 1, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=types)
