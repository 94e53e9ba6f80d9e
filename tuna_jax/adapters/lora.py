"""The parameters of a LoRA: what is trained, as a nested dict next to that of the frozen model, and how they combine.

A trained tree has `X.lora.a` and `X.lora.b` for every layer X that is adapted, and parameters that are trained whole
under their own names. It is what the optimizer, the moving average and checkpoints hold.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tuna_jax.adapters import targets
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.models.low_rank import LowRank, merged
from tuna_jax.utils.param_tree import flatten, unflatten

Tree = dict[str, Any]

A, B = ".lora.a", ".lora.b"
"""Endings of the names of an adapted layer's matrices."""


class Adapters:
    """The adapters of one model.

    Args:
      settings: of the adapters; it has targets.
      network: shapes of the model's parameters, a nested dict.

    Attributes:
      layers: paths of the adapted layers.
      whole: names of the parameters that are trained whole.
      shapes: of the trained tree, float32.

    Raises:
      ValueError: a pattern or a prefix matches nothing.
    """

    def __init__(self, settings: LoraSettings, network: Tree):
        flat = flatten(network)
        self.settings = settings
        self.layers = targets.select(settings.targets, flat)
        self.whole = targets.whole(settings.trained, flat, self.layers)
        self._kernels = {path: flat[f"{path}.kernel"].shape for path in self.layers}
        shapes: dict[str, Any] = {}
        for path, (*stack, inputs, outputs) in self._kernels.items():
            for name, shape in (
                (path + A, (*stack, inputs, settings.rank)),
                (path + B, (*stack, settings.rank, outputs)),
            ):
                shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
        shapes |= {name: flat[name] for name in self.whole}
        self.shapes: Tree = unflatten(shapes)

    def init(self, key: jax.Array, base: Tree) -> Tree:
        """A new trained tree: a is uniform with the variance 1 / (3 in), as in PEFT; b is 0; the rest is copied.

        Args:
          key: of the random numbers; a layer's depend on its path, not on the other layers.
          base: the model's parameters.
        """
        flat, tree = flatten(base), {}
        for path, (*stack, inputs, outputs) in self._kernels.items():
            rank, bound = self.settings.rank, 1 / math.sqrt(inputs)
            own = jax.random.fold_in(key, _number(path))
            shape = (*stack, inputs, rank)
            tree[path + A] = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
            tree[path + B] = jnp.zeros((*stack, rank, outputs), jnp.float32)
        for name in self.whole:
            tree[name] = jnp.copy(flat[name].astype(jnp.float32))
        return unflatten(tree)

    def frozen(self, base: Tree) -> Tree:
        """The parameters of a model without those that are trained whole; arrays or shapes."""
        return unflatten({k: leaf for k, leaf in flatten(base).items() if k not in self.whole})

    def combined(self, base: Tree, trained: Tree, key: jax.Array | None = None) -> Tree:
        """The network's parameters, with a `LowRank` in the place of each adapted kernel; nothing is computed.

        Args:
          base: frozen parameters.
          trained: a tree like `shapes`.
          key: of the dropout of this step; None: no dropout, as in inference.
        """
        params = combine(base, trained, self.settings.scale)
        if key is None or not self.settings.dropout:
            return params
        flat = flatten(params)
        for path, (*stack, _, _) in self._kernels.items():
            own = jax.random.fold_in(key, _number(path))
            data = jax.random.key_data(jax.random.split(own, stack[0]) if stack else own)
            low_rank = flat[f"{path}.kernel"]
            flat[f"{path}.kernel"] = LowRank(
                low_rank.kernel,
                low_rank.a,
                low_rank.b,
                data,
                self.settings.scale,
                self.settings.dropout,
            )
        return unflatten(flat)


def combine(base: Tree, trained: Tree, scale: float) -> Tree:
    """`base` with the adapters and the whole parameters of `trained`; adapted kernels become `LowRank`."""
    flat, own = dict(flatten(base)), flatten(trained)
    for name, leaf in own.items():
        if name.endswith(A):
            path = name.removesuffix(A)
            kernel = flat[f"{path}.kernel"]
            flat[f"{path}.kernel"] = LowRank(kernel, leaf, own[path + B], scale=scale)
        elif not name.endswith(B):
            flat[name] = leaf
    return unflatten(flat)


def merge(base: Tree, trained: Tree, scale: float) -> Tree:
    """`base` with the adapters added to its kernels, as plain arrays in the dtypes of `base`."""
    is_low_rank = lambda leaf: isinstance(leaf, LowRank)
    combined = flatten(combine(base, trained, scale))
    flat = flatten(base)
    return unflatten(
        {
            name: merged(leaf) if is_low_rank(leaf) else jnp.asarray(leaf, flat[name].dtype)
            for name, leaf in combined.items()
        }
    )


def layers_of(trained: Mapping[str, Any]) -> list[str]:
    """The paths of the adapted layers of a trained tree by dotted name."""
    return [name.removesuffix(A) for name in trained if name.endswith(A)]


def check_fits(what: str, trained: Mapping[str, Any], network: Mapping[str, Any]) -> None:
    """Checks that a trained tree fits a model.

    Args:
      what: names both, for the message.
      trained, network: arrays, shapes or entries by dotted name.

    Raises:
      ValueError: a layer that the model does not have, or another size; all are listed.
    """
    problems = []
    for name, leaf in trained.items():
        shape = tuple(leaf.shape)
        path = name.removesuffix(A).removesuffix(B)
        target = f"{path}.kernel" if path != name else name
        if target not in network:
            problems.append(f"the model has no {target}")
            continue
        expected = tuple(network[target].shape)
        if name.endswith(A):
            fits = shape[:-1] == expected[:-1]
        elif name.endswith(B):
            fits = shape[:-2] == expected[:-2] and shape[-1:] == expected[-1:]
        else:
            fits = shape == expected
        if not fits:
            problems.append(f"{name} is {list(shape)}, and the model's {target} {list(expected)}")
    if problems:
        raise ValueError(
            f"{what} do not fit together ({len(problems)} parameters): {'; '.join(problems[:5])}"
        )


def _number(path: str) -> int:
    """A number of 31 bits that is derived from a path, the same in every process."""
    return zlib.crc32(path.encode()) & 0x7FFFFFFF
