"""Equivalents that XLA on CPU runs faster. `enabled` is the one switch; TPUs and GPUs get the plain operations.

Measured with the emoji model on two cores, interleaved in one process, medians of CPU time (November 2026):

- `matmul` has gradients without transposed copies: without it a training step (24 rows) takes 1.17 times as long.
- `unstack` keeps loops from copying layers out of their stacks: without it sampling (16 steps) takes 1.29 times as long
  for one image and 1.05 times for 24, and decoding 2.25 times for one row and 1.82 times for eight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tuna_jax.config import TunaConfig
from tuna_jax.models.logical_sharding import platform


def enabled() -> bool:
    """Whether the program that is being traced is compiled for CPU."""
    return platform() == "cpu"


def matmul(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """`x @ kernel`."""
    return _matmul(x, kernel) if enabled() else x @ kernel


@jax.custom_vjp
def _matmul(x: Array, kernel: Array) -> Array:
    """JAX computes the kernel's gradient as the transpose of a product; XLA on CPU turns that into transposed copies,
    and computes the elementwise operations before them again."""
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    to_x = jax.lax.dot_general(gradients, kernel, (((1,), (1,)), ((), ())))
    return to_x.reshape(x.shape), jax.lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unstacked:
    """A stacked parameter or cache as one array per layer."""

    layers: tuple[Any, ...]


def unstacks(config: TunaConfig) -> bool:
    """Whether loops over steps and tokens take unstacked layers."""
    return config.unroll and enabled()


def unstack(stacks: Any) -> Any:
    """A tree of arrays with a leading layer axis, each as `Unstacked`; unstacked arrays are returned unchanged."""
    return jax.tree.map(
        lambda leaf: leaf if is_unstacked(leaf) else Unstacked(tuple(leaf)),
        stacks,
        is_leaf=is_unstacked,
    )


def unstack_layers(params: Any) -> Any:
    """Parameters with every stack of layers unstacked; unstacked ones are returned unchanged.

    XLA on CPU copies a layer out of its stack before it multiplies with it. If the layers are unstacked before a loop
    over steps or tokens, each is copied once and not in every round: most of a token's time goes into these copies.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: unstack(leaf) if _in_stack(path) else leaf, params, is_leaf=is_unstacked
    )


def is_unstacked(leaf: Any) -> bool:
    """Whether a leaf of a tree is `Unstacked`."""
    return isinstance(leaf, Unstacked)


def any_unstacked(tree: Any) -> bool:
    """Whether a tree has an `Unstacked` leaf."""
    return any(map(is_unstacked, jax.tree.leaves(tree, is_leaf=is_unstacked)))


def run_layers(
    step: Callable[[Array, Any], tuple[Array, Any]], x: Array, state: Any, extras: Any
) -> tuple[Array, Any]:
    """`jax.lax.scan(step, x, (state, extras))` as a Python loop; the outputs are unstacked if the extras are."""
    join = Unstacked if any_unstacked(extras) else jnp.stack
    sliced, outputs = unstack((state, extras)), []
    count = len(next(filter(is_unstacked, jax.tree.leaves(sliced, is_leaf=is_unstacked))).layers)
    for index in range(count):
        layer = jax.tree.map(lambda leaf, i=index: leaf.layers[i], sliced, is_leaf=is_unstacked)
        x, output = step(x, layer)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: join(leaves), *outputs)


def _in_stack(path: tuple[Any, ...]) -> bool:
    return any(getattr(entry, "key", None) == "layers" for entry in path)
