"""How a model is sharded for inference: the layout with the least communication that fits the devices' memory.

In this order (docs/generated/scaling.md has what each sends, by plan):

    replicated       every device has all parameters and a part of the batch; nothing is sent
    tensor parallel  heads and MLP features are split over a few neighbouring devices
    FSDP             parameters are split over all devices and gathered layer by layer

Parameters keep their stored dtype if they fit so; otherwise they are cast to bfloat16, in which the large presets
compute in any case.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from tuna_jax.config import TunaConfig
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import AXES, MeshSettings, sizes

SHARE = 0.85
"""The largest share of a device's memory that parameters may take. The 7B, replicated on v6e, takes 84 %: a batch's
caches and activations are small, and the VAE runs in tiles."""
_STORED_SHARE = (
    0.5  # Of parameters in their stored dtype, where bfloat16 would leave more for larger batches.
)
_TENSOR = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and a dtype for inference.

    Attributes:
      name: 'replicated', 'tensor parallel' or 'FSDP'.
      mesh: sizes of the mesh axes.
      dtype: of the parameters; '' keeps the stored one.
      bytes_per_device: bytes of parameters on each device.
    """

    name: str
    mesh: MeshSettings
    dtype: str
    bytes_per_device: int

    def describe(self) -> str:
        """One line for a log."""
        axes = " x ".join(
            f"{axis} {size}" for axis in AXES if (size := getattr(self.mesh, axis)) != 1
        )
        dtype = self.dtype or "as stored"
        gib = self.bytes_per_device / 2**30
        return f"{self.name} ({axes or 'one device'}; parameters {dtype}, {gib:.2f} GiB per device)"


def choose(config: TunaConfig, devices: int, memory: int, dtype: str = "") -> Layout:
    """The first layout that fits.

    Args:
      config: the model.
      devices: number of devices, of all processes.
      memory: bytes of one device.
      dtype: the dtype of the parameters, if it is fixed.

    Raises:
      ValueError: even FSDP in bfloat16 does not fit.
    """
    least = None
    for layout in _candidates(config, devices, dtype):
        if _fits(layout, memory, dtype):
            return layout
        if least is None or layout.bytes_per_device < least.bytes_per_device:
            least = layout
    assert least is not None
    raise ValueError(
        f"the parameters take {least.bytes_per_device / 2**30:.1f} GiB on each of {devices} devices even with "
        f"{least.describe()}, more than {SHARE:.0%} of the {memory / 2**30:.1f} GiB of one; use more devices"
    )


def first_of_each_kind(
    config: TunaConfig, devices: int, memory: int, dtype: str = ""
) -> list[Layout]:
    """Of every kind of layout the first that fits, in the order of preference; arguments as for `choose`, which returns
    the first."""
    first: dict[str, Layout] = {}
    for layout in _candidates(config, devices, dtype):
        if layout.name not in first and _fits(layout, memory, dtype):
            first[layout.name] = layout
    return list(first.values())


def _candidates(config: TunaConfig, devices: int, dtype: str) -> Iterator[Layout]:
    """All layouts in the order of preference."""
    shapes = tuna.shapes(config)
    dtypes = [dtype] if dtype else ["", "bfloat16"]
    tensor = [t for t in _TENSOR if devices % t == 0]
    meshes = [("replicated", MeshSettings(data=devices))]
    meshes += [
        ("tensor parallel", MeshSettings(data=devices // t, tensor=t))
        for t in tensor
        if devices > 1
    ]
    fsdp = [n for n in range(devices, 1, -1) if devices % n == 0]
    meshes += [("FSDP", MeshSettings(data=devices // n, fsdp=n)) for n in fsdp]
    for name, mesh in meshes:
        for candidate in dtypes:
            size = _bytes_per_device(shapes, mesh, devices, candidate)
            if size is not None:
                yield Layout(name, mesh, candidate, size)


def _fits(layout: Layout, memory: int, dtype: str) -> bool:
    share = SHARE if layout.dtype or dtype else _STORED_SHARE
    return layout.bytes_per_device <= share * memory


def for_devices(
    config: TunaConfig, dtype: str = "", devices: Sequence[Any] | None = None
) -> Layout:
    """`choose` for the devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return choose(config, len(devices), memory_of(devices[0]), dtype)


def memory_of(device: Any) -> int:
    """Bytes of a device's memory; on CPU, its share of this machine's."""
    stats = device.memory_stats() if device.process_index == jax.process_index() else None
    if stats is None and device.platform != "cpu":
        stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.device_count()


def _bytes_per_device(shapes: Any, mesh: MeshSettings, devices: int, dtype: str) -> int | None:
    """Bytes of parameters on each device; None if some parameter cannot be split so."""
    abstract = AbstractMesh(sizes(mesh, devices), AXES)
    try:
        shardings = param_sharding.shardings(shapes, abstract)
    except ValueError:
        return None
    itemsize = 2 if dtype == "bfloat16" else None

    def of(leaf: Any, sharding: Any) -> int:
        part = math.prod(sharding.shard_shape(leaf.shape))
        return part * (itemsize or leaf.dtype.itemsize)

    return sum(jax.tree.leaves(jax.tree.map(of, shapes, shardings)))
