"""Which activation is split along which of its axes: one table of logical names, and the sharding that follows it.

The model names the axes of what it computes (`models/logical_sharding.py`); this table says on which mesh axes each lies.
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
    """On which mesh axes a logical axis lies.

    Attributes:
      mesh: the mesh axes; none: every device has the whole.
      or_whole: where the size does not divide by them the axis is left whole; else that is an error.
    """

    mesh: tuple[str, ...] = ()
    or_whole: bool = False


ACTIVATIONS: Mapping[str, Split] = {
    # Samples; in the representation encoder samples times slots times frames, sample-major.
    "batch": Split(("slices", "data", "fsdp")),
    # Samples and table rows where token embeddings are looked up: as the table lies (parallel/param_sharding.py).
    "group": Split(("slices", "data")),
    "table_width": Split(("fsdp",)),
    "sequence": Split(("context",)),
    # Queries are split over `context`; every query may want any key.
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
"""Training."""

GENERATION: Mapping[str, Split] = {
    **ACTIVATIONS,
    # Any number of pictures may be asked for.
    "batch": Split(("slices", "data", "fsdp"), or_whole=True),
    "group": Split(("slices", "data"), or_whole=True),
    # A step of decoding is one token long.
    "sequence": Split(),
    "tokens": Split(),
}
"""Generation: sequences are whole on every device."""


@dataclasses.dataclass(frozen=True)
class Activations:
    """Lays activations over a mesh as a table says; the `LogicalSharding` of `models/logical_sharding.py`.

    On a mesh of one device it changes nothing. It can be hashed, so that it may be a static argument.

    Args:
      mesh: the devices.
      generation: take the table for generation, not that for training.
    """

    mesh: AnyMesh
    generation: bool = False

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices, which need not be JAX's default: programs are compiled for others too."""
        devices = self.mesh.devices if isinstance(self.mesh, Mesh) else None
        return jax.default_backend() if devices is None else devices.flat[0].platform

    def spec(self, shape: tuple[int, ...], axes: Axes) -> PartitionSpec:
        """How an array lies; see `partition`."""
        return partition(shape, axes, self.mesh, GENERATION if self.generation else ACTIVATIONS)

    def place(self, x: Array, axes: Axes) -> Array:
        """`x` with a sharding constraint; raises ValueError as `partition` does."""
        spec = self.spec(x.shape, axes)
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def parts(self, name: str, size: int) -> int:
        """Into how many parts an axis of this name and size is split."""
        (entry,) = self.spec((size,), (name,))
        axes = (entry,) if isinstance(entry, str) else entry or ()
        return math.prod(self.mesh.shape[axis] for axis in axes)

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
            known = {name: entry for axes, spec in zip(inputs, specs, strict=True)
                     for name, entry in zip(axes, spec, strict=True)}  # fmt: skip
            out = PartitionSpec(*(known[name] for name in output))
            # A kernel's outputs say nothing of the mesh axes that they vary over.
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False
            )(*arguments)

        return run


def partition(
    shape: tuple[int, ...], axes: Axes, mesh: AnyMesh, table: Mapping[str, Split] = ACTIVATIONS
) -> PartitionSpec:
    """The `PartitionSpec` of an activation, one entry an axis.

    Args:
      shape: its sizes. axes: its logical names, None for an axis that is never split.
      mesh: the devices.
      table: where logical axes lie.

    Raises:
      ValueError: a name that the table lacks, another number of names than axes, two axes on one mesh axis, or a size
        that does not divide where the table asks for that. The message says which.
    """
    if len(axes) != len(shape):
        raise ValueError(f"an activation of shape {shape} is placed with {len(axes)} names: {axes}")
    entries: list[tuple[str, ...] | None] = []
    taken: dict[str, str] = {}
    for name, size in zip(axes, shape, strict=True):
        if name is None:
            entries.append(None)
            continue
        if name not in table:
            raise ValueError(
                f"an activation of shape {shape} names the axis {name!r}, which parallel/activation_sharding.py does not have; "
                f"there are {', '.join(table)}"
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
