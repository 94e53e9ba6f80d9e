"""Which layers an adapter changes: presets, and patterns over the paths of parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PARTS = ("language", "representation", "flow_head")
"""The parts that are transformers."""

PRESETS: dict[str, tuple[str, ...]] = {
    "all-linear": ("*",),
    **{
        f"{part}.attention": tuple(
            f"{part}.layers.{name}" for name in ("query", "key", "value", "out")
        )
        for part in PARTS
    },
    "language.mlp": ("language.layers.mlp",),
    "flow_head.mlp": ("flow_head.layers.mlp",),
    # SigLIP has two matrices, a gated DINOv3 three.
    "representation.mlp": tuple(f"representation.layers.{name}" for name in ("[gu]*", "down")),
}
"""Name -> patterns. 'all-linear' is every linear layer but the text head, as in PEFT."""

_KERNEL = ".kernel"
# The text head is read as a table, not applied as a layer.
_NOT_LAYERS = ("language.head",)


def linear_layers(shapes: Mapping[str, Any]) -> list[str]:
    """The paths of the layers that can have an adapter: those with a matrix, which may be stacked.

    Args:
      shapes: the network's parameters by dotted name, arrays or shapes.
    """
    layers = []
    for name, leaf in shapes.items():
        path = name.removesuffix(_KERNEL)
        axes = 3 if ".layers." in name else 2
        if name.endswith(_KERNEL) and len(leaf.shape) == axes and path not in _NOT_LAYERS:
            layers.append(path)
    return layers


def select(targets: Sequence[str], shapes: Mapping[str, Any]) -> list[str]:
    """The paths of the layers that presets and patterns name, in the order of `shapes`.

    Raises:
      ValueError: one of them matches nothing; all layers that there are, and the presets, are listed.
    """
    layers = linear_layers(shapes)
    chosen: set[str] = set()
    for target in targets:
        patterns = PRESETS.get(target, (target,))
        matched = [path for path in layers if any(_matches(path, p) for p in patterns)]
        if not matched:
            raise ValueError(
                f"config.lora.targets: {target!r} matches no layer. The layers are "
                f"{', '.join(layers)}. The presets are {', '.join(PRESETS)}"
            )
        chosen |= set(matched)
    return [path for path in layers if path in chosen]


def whole(prefixes: Sequence[str], shapes: Iterable[str], adapted: Sequence[str]) -> list[str]:
    """The names of the parameters below `prefixes`, which are trained whole.

    Raises:
      ValueError: a prefix matches no parameter, or a layer that has an adapter.
    """
    names, chosen = list(shapes), []
    for prefix in prefixes:
        matched = [name for name in names if _below(name, prefix)]
        if not matched:
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"config.lora.trained: the prefix {prefix!r} matches no parameter; the top-level names are "
                f"{', '.join(parts)}"
            )
        twice = [path for path in adapted if f"{path}{_KERNEL}" in matched]
        if twice:
            raise ValueError(
                f"config.lora.trained: {prefix!r} names {twice[0]}, which also has an adapter (config.lora.targets); "
                f"leave it out of one of them"
            )
        chosen += matched
    return [name for name in names if name in set(chosen)]


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern matches a path, or a group of layers that the path is in."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
