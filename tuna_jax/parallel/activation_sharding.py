"""How activations are sharded: one table from logical axis names to mesh axes, and the sharding that applies it.

The model names the axes of what it computes (`models/logical_sharding.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from tuna_jax.parallel.param_sharding import AnyMesh

Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """The mesh axes that a logical axis is split over.

    Attributes:
      mesh: the mesh axes; empty: every device has the whole axis.
      or_whole: leave the axis whole if its size does not divide by them; otherwise that is an error.
    """

    mesh: tuple[str, ...] = ()
    or_whole: bool = False


ACTIVATIONS: Mapping[str, Split] = {
    # Samples; in the representation encoder samples times slots times frames, sample-major.
    "batch": Split(("slices", "data", "fsdp")),
    # Samples and table rows during the lookup of token embeddings: sharded as the table is
    # (parallel/param_sharding.py).
    "group": Split(("slices", "data")),
    "table_width": Split(("fsdp",)),
    "sequence": Split(("context",)),
    # Keys of which each device needs whole sequences: in the representation encoder, in caches, and without ring
    # attention, where those of "sequence" are gathered.
    "keys": Split(),
    # Image tokens of a frame or a slot. Grids are of any size.
    "tokens": Split(("context",), or_whole=True),
    "slots": Split(),
    "width": Split(),
    "channels": Split(),
    "heads": Split(("tensor",), or_whole=True),
    "kv_heads": Split(("tensor",), or_whole=True),
    "mlp": Split(("tensor",), or_whole=True),
    "vocabulary": Split(),
}
"""The table for training."""

GENERATION: Mapping[str, Split] = {
    **ACTIVATIONS,
    # The batch may have any size.
    "batch": Split(("slices", "data", "fsdp"), or_whole=True),
    "group": Split(("slices", "data"), or_whole=True),
    # A decoding step has one token.
    "sequence": Split(),
    "tokens": Split(),
}
"""The table for generation: sequences are whole on every device."""


@dataclasses.dataclass(frozen=True)
class Activations:
    """Shards activations over a mesh as a table says; the `LogicalSharding` of `models/logical_sharding.py`.

    On a mesh of one device it changes nothing. It is hashable, so it can be a static argument.

    Args:
      mesh: the devices.
      generation: use the table for generation instead of the one for training.
      ring: keys and values of split sequences travel round the axis `context` (`models/ring.py`); otherwise each device
        gathers those of whole sequences.
    """

    mesh: AnyMesh
    generation: bool = False
    ring: bool = True

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices; planning compiles for platforms that are not JAX's default."""
        devices = self.mesh.devices if isinstance(self.mesh, Mesh) else None
        return jax.default_backend() if devices is None else devices.flat[0].platform

    def spec(self, shape: tuple[int, ...], axes: Axes) -> PartitionSpec:
        """The `PartitionSpec` of an array; see `partition`."""
        return partition(shape, axes, self.mesh, GENERATION if self.generation else ACTIVATIONS)

    def constrain(self, x: Array, axes: Axes) -> Array:
        """`x` with a sharding constraint; raises ValueError as `partition` does."""
        spec = self.spec(x.shape, axes)
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def parts(self, name: str, size: int) -> int:
        """The number of parts that an axis of this name and size is split into."""
        (entry,) = self.spec((size,), (name,))
        axes = (entry,) if isinstance(entry, str) else entry or ()
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def ring_axes(self) -> dict[str, int]:
        """The mesh axes round which keys and values of a split sequence travel, with their sizes."""
        split = (GENERATION if self.generation else ACTIVATIONS)["sequence"].mesh
        sizes = {axis: self.mesh.shape[axis] for axis in split}
        return sizes if self.ring and math.prod(sizes.values()) > 1 else {}

    def local(
        self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
    ) -> Callable[..., Array]:
        """`function` on each device's own parts; the result's axes must be among those of the arguments."""
        if self.mesh.size == 1:
            return function

        def run(*arguments: Array) -> Array:
            specs = tuple(
                self.spec(x.shape, axes) for x, axes in zip(arguments, inputs, strict=True)
            )
            entries = {name: entry for axes, spec in zip(inputs, specs, strict=True)
                     for name, entry in zip(axes, spec, strict=True)}  # fmt: skip
            out = PartitionSpec(*(entries[name] for name in output))
            # A kernel's outputs do not declare the mesh axes that they vary over.
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False
            )(*arguments)

        return run


def partition(
    shape: tuple[int, ...], axes: Axes, mesh: AnyMesh, table: Mapping[str, Split] = ACTIVATIONS
) -> PartitionSpec:
    """The `PartitionSpec` of an activation, one entry per axis.

    Args:
      shape: its sizes.
      axes: its logical names, None for an axis that is never split.
      mesh: the devices.
      table: the mesh axes of every logical axis.

    Raises:
      ValueError: a name is not in the table, the number of names differs from the number of axes, two axes share a mesh
        axis, or a size does not divide although the table requires it. The message names the axis.
    """
    if len(axes) != len(shape):
        raise ValueError(f"an activation of shape {shape} has {len(axes)} axis names: {axes}")
    entries: list[tuple[str, ...] | None] = []
    taken: dict[str, str] = {}
    for name, size in zip(axes, shape, strict=True):
        if name is None:
            entries.append(None)
            continue
        if name not in table:
            raise ValueError(
                f"an activation of shape {shape} has an axis named {name!r}, which is not in "
                f"parallel/activation_sharding.py; the known names are {', '.join(table)}"
            )
        split = table[name]
        parts = math.prod(mesh.shape[axis] for axis in split.mesh)
        if size % parts and not split.or_whole:
            raise ValueError(
                f"the axis {name!r} of an activation {axes} has size {size}, which does not divide by {parts} (mesh "
                f"{' x '.join(f'{axis} {mesh.shape[axis]}' for axis in split.mesh)}); choose a multiple of {parts}, or "
                f"a smaller mesh axis"
            )
        used = () if size % parts else split.mesh
        for axis in used:
            if axis in taken:
                raise ValueError(
                    f"an activation {axes} has both {taken[axis]!r} and {name!r} on the mesh axis {axis!r}"
                )
            taken[axis] = name
        entries.append(used or None)
    return PartitionSpec(*entries)
