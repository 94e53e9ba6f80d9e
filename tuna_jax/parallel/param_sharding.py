"""How parameters are sharded: one ordered table of rules, and the checks that it is sound.

A rule names the *logical* axes of the parameters whose dotted path it matches; `LogicalAxes` maps each logical axis to
a mesh axis. The first rule that matches a path applies. Four mistakes are errors: a parameter that no rule matches, a
rule that matches no parameter, two axes of one parameter on one mesh axis, and an axis whose size does not divide.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None
AnyMesh = Mesh | AbstractMesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogicalAxes:
    """The mesh axis (or axes, or None) that each logical axis is split over.

    Attributes:
      batch: samples.
      sequence: token positions.
      layer: the stacked layers.
      width: features between layers.
      heads: features of all heads.
      mlp: hidden features of an MLP.
      vocabulary: token ids.
      modulation: the AdaLN outputs.
      small: short axes.
    """

    batch: MeshAxes = ("slices", "data", "fsdp")
    sequence: MeshAxes = "context"
    layer: MeshAxes = None
    width: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    # The 151,669 ids of Qwen2.5 have no useful divisor.
    vocabulary: MeshAxes = None
    modulation: MeshAxes = "tensor"
    small: MeshAxes = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Logical axes for every parameter whose whole dotted path matches `pattern`.

    Attributes:
      pattern: regular expression.
      axes: one name per dimension; None replicates the parameter, whatever its rank.
      optional: True if some models have no such parameter.
    """

    pattern: str
    axes: tuple[str, ...] | None
    optional: bool = False


_LAYERS = r"(representation|language|flow_head)\.layers"

RULES: tuple[Rule, ...] = (
    # Attention and MLP of the three transformers, stacked on a leading layer axis.
    Rule(rf"{_LAYERS}\.(query|key|value)\.kernel", ("layer", "width", "heads")),
    Rule(rf"{_LAYERS}\.(query|key|value)\.bias", ("layer", "heads")),
    Rule(rf"{_LAYERS}\.out\.kernel", ("layer", "heads", "width")),
    Rule(rf"{_LAYERS}\.(mlp\.)?(gate|up)\.kernel", ("layer", "width", "mlp")),
    Rule(rf"{_LAYERS}\.(mlp\.)?down\.kernel", ("layer", "mlp", "width")),
    # The token table, and the text head if it is not tied to the table.
    Rule(r"language\.embedding", ("vocabulary", "width")),
    Rule(r"language\.(head|head\.kernel)", ("width", "vocabulary"), optional=True),
    # Latents in, velocities out.
    Rule(r"representation\.patch\.kernel", ("small", "width"), optional=True),
    Rule(r"representation\.position", ("small", "width"), optional=True),
    Rule(r"representation\.registers", ("small", "width"), optional=True),
    Rule(r"representation\.cls", None, optional=True),
    Rule(r"embedding\.patch\.kernel", ("small", "width"), optional=True),
    Rule(r"flow_head\.layers\.modulation\.linear\.kernel", ("layer", "width", "modulation")),
    Rule(r"flow_head\.final\.modulation\.linear\.kernel", ("width", "modulation")),
    Rule(r"flow_head\.final\.linear\.kernel", ("width", "small")),
    # Two-layer perceptrons between the parts.
    Rule(r"connector\.up\.kernel", ("width", "mlp"), optional=True),
    Rule(r"connector\.down\.kernel", ("mlp", "width"), optional=True),
    # The input of the fusion is two widths together, which a mesh axis may not divide.
    Rule(r"fusion\.up\.kernel", ("small", "mlp"), optional=True),
    Rule(r"fusion\.down\.kernel", ("mlp", "width"), optional=True),
    Rule(r"projection\.kernel", ("small", "width"), optional=True),
    Rule(r"time_embedding\.up\.kernel", ("small", "width")),
    Rule(r"time_embedding\.down\.kernel", ("width", "mlp")),
    # Vectors are small and are replicated.
    Rule(r".*\.(bias|scale)", None),
    Rule(r"mask_token", None, optional=True),
)


_ADAPTER = re.compile(r"(.+)\.lora\.([ab])")


def shardings(
    shapes: Any,
    mesh: AnyMesh,
    *,
    axes: LogicalAxes | None = None,
    rules: Sequence[Rule] = RULES,
    whole: bool = True,
) -> Any:
    """A `NamedSharding` for every parameter.

    The matrices of an adapter are split as the kernel that they belong to: `X.lora.a` [in, rank] along its inputs and
    `X.lora.b` [rank, out] along its outputs, by the rule of `X.kernel`; the rank is not split.

    Args:
      shapes: nested dict of arrays or `jax.ShapeDtypeStruct`, as from `jax.eval_shape(init)`.
      mesh: the mesh.
      axes: the mesh axes of the logical axes; default `LogicalAxes()`.
      rules: the table.
      whole: False: the tree may lack parameters of the model, so that rules may match none.

    Returns:
      A tree like `shapes`.

    Raises:
      ValueError: one of the four mistakes in this module's docstring.
    """
    axes = axes or LogicalAxes()
    used: set[Rule] = set()

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = dotted(path)
        adapter = _ADAPTER.fullmatch(name)
        searched = f"{adapter[1]}.kernel" if adapter else name
        rule = next((rule for rule in rules if re.fullmatch(rule.pattern, searched)), None)
        if rule is None:
            raise ValueError(
                f"no sharding rule matches the parameter {name} {leaf.shape}; add one to parallel/param_sharding.py"
            )
        used.add(rule)
        if adapter and rule.axes is not None:
            *stack, inputs, outputs = rule.axes
            ours = (*stack, inputs, "small") if adapter[2] == "a" else (*stack, "small", outputs)
            rule = dataclasses.replace(rule, axes=ours)
        return NamedSharding(mesh, partition(name, leaf.shape, rule, axes, mesh))

    tree = jax.tree_util.tree_map_with_path(sharding, shapes)
    unused = [rule.pattern for rule in rules if rule not in used and not rule.optional]
    if unused and whole:
        raise ValueError(
            f"the sharding rule {unused[0]!r} matches no parameter: it is misspelt, or an earlier rule matches all of "
            f"its parameters ({len(unused)} such rules)"
        )
    return tree


def partition(
    name: str, shape: tuple[int, ...], rule: Rule, axes: LogicalAxes, mesh: AnyMesh
) -> PartitionSpec:
    """The `PartitionSpec` that `rule` gives the parameter `name`; raises ValueError if the rule does not fit."""
    if rule.axes is None:
        return PartitionSpec()
    if len(rule.axes) != len(shape):
        raise ValueError(
            f"the sharding rule {rule.pattern!r} names {len(rule.axes)} axes {rule.axes}, but {name} has shape {shape}"
        )
    taken: dict[str, str] = {}
    for logical, size in zip(rule.axes, shape, strict=True):
        physical = _as_tuple(_mesh_axes(axes, logical, rule))
        for axis in physical:
            if axis not in mesh.shape:
                raise ValueError(
                    f"the logical axis {logical!r} is split over the mesh axis {axis!r}, which does not exist; "
                    f"the mesh has {', '.join(mesh.shape)}"
                )
            if axis in taken:
                raise ValueError(
                    f"{name}: the logical axes {taken[axis]!r} and {logical!r} are both split over the mesh axis "
                    f"{axis!r}; a mesh axis can split only one axis of a parameter"
                )
            taken[axis] = logical
        parts = math.prod(mesh.shape[axis] for axis in physical)
        if size % parts:
            fits = max(count for count in range(1, parts + 1) if size % count == 0)
            raise ValueError(
                f"{name}: its axis {logical!r} of size {size} does not divide by {parts} (mesh "
                f"{' x '.join(f'{axis} {mesh.shape[axis]}' for axis in physical)}); {fits} is the "
                f"largest smaller count that divides it"
            )
    return PartitionSpec(*(_mesh_axes(axes, logical, rule) for logical in rule.axes))


def follow(params_shardings: Any, tree: Any, mesh: AnyMesh) -> Any:
    """Shardings for a tree that contains copies of the parameters (EMA, Adam's moments).

    A leaf whose path ends in a parameter's path is sharded like that parameter; every other leaf is replicated.
    """
    by_path = {
        tuple(_keys(path)): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(params_shardings)
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = tuple(_keys(path))
        matches = (by_path[keys[start:]] for start in range(len(keys)) if keys[start:] in by_path)
        match = next(matches, None)
        if match is None or len(match.spec) > len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        return match

    return jax.tree_util.tree_map_with_path(sharding, tree)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: AnyMesh, axes: LogicalAxes | None = None) -> NamedSharding:
    """The leading axis is split over the mesh axes of `batch`."""
    return NamedSharding(mesh, PartitionSpec((axes or LogicalAxes()).batch))


def batch_parts(mesh: AnyMesh, axes: LogicalAxes | None = None) -> int:
    """The number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in _as_tuple((axes or LogicalAxes()).batch))


def check_batch(size: int, mesh: AnyMesh, axes: LogicalAxes | None = None) -> None:
    """Raises ValueError if a global batch of `size` samples cannot be split over the mesh."""
    physical = _as_tuple((axes or LogicalAxes()).batch)
    parts = batch_parts(mesh, axes)
    if size % parts:
        raise ValueError(
            f"a batch of {size} does not divide by {parts} ({' x '.join(physical)} of the mesh); "
            f"choose a multiple of {parts}"
        )


def dotted(path: tuple[Any, ...]) -> str:
    """('language', 'layers', 'query', 'kernel') -> 'language.layers.query.kernel'."""
    return ".".join(_keys(path))


def _keys(path: tuple[Any, ...]) -> list[str]:
    return [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    ]


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _mesh_axes(axes: LogicalAxes, logical: str, rule: Rule) -> MeshAxes:
    if not hasattr(axes, logical):
        raise ValueError(
            f"the sharding rule {rule.pattern!r} names an unknown logical axis {logical!r}; the known ones are "
            f"{', '.join(field.name for field in dataclasses.fields(axes))}"
        )
    return getattr(axes, logical)
