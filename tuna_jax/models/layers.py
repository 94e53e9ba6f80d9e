"""Layers that all parts share, and the conversion between Flax modules and plain parameter dicts.

A module is a pytree that only JAX's own transforms touch. `split` turns one into `(graphdef, params)` once; `merge` is
its inverse inside a traced function. `params` is a nested dict with string keys, the stable names of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.models.cpu_fast_paths import any_unstacked, matmul, run_layers
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.low_rank import LowRank

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)

fan_in_init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
xavier_init = nnx.initializers.xavier_uniform()
zeros_init = nnx.initializers.zeros_init()


def split(module: nnx.Module) -> tuple[Any, Params]:
    """Module -> (graphdef, params); the keys of params are strings, list indices included."""
    graphdef, state = nnx.split(module)

    def stringify(node: Any) -> Any:
        return {str(k): stringify(v) for k, v in node.items()} if isinstance(node, dict) else node

    return graphdef, stringify(nnx.to_pure_dict(state))


def merge(graphdef: Any, params: Params) -> Any:
    """The inverse of `split`. Leaves may have other shapes or be tracers."""

    def restore(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {int(k) if k.isdigit() else k: restore(v) for k, v in node.items()}

    return nnx.merge(graphdef, restore(params))


def stacked(make: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> Module:
    """`count` modules in one, every parameter with a leading layer axis; run it with `scan_layers`."""

    def make_one(key: Array) -> Module:
        return make(nnx.Rngs(key))

    build = nnx.vmap(make_one, in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    return build(jax.random.split(rngs.params(), count))


ATTENTION = "attention"
"""The name of attention's outputs in the policies below (`jax.ad_checkpoint.checkpoint_name`)."""

_ATTENTION_KEPT = jax.checkpoint_policies.save_only_these_names(ATTENTION)
_REMAT: dict[str, Callable[..., Any]] = {
    "full": lambda body: jax.checkpoint(body, prevent_cse=False),
    "dots": lambda body: jax.checkpoint(
        body, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "attention": lambda body: jax.checkpoint(body, prevent_cse=False, policy=_ATTENTION_KEPT),
    "dots_attention": lambda body: jax.checkpoint(
        body,
        prevent_cse=False,
        policy=jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENTION_KEPT
        ),
    ),
    "none": lambda body: body,
}


def scan_layers(
    layers: nnx.Module,
    body: Callable[[Any, Array, Any], tuple[Array, Any]],
    x: Array,
    extras: Any = None,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[Array, Any]:
    """Runs stacked layers in order, so that trace and compile time do not grow with depth.

    Args:
      layers: a module made by `stacked`; its parameters may be `cpu_fast_paths.Unstacked`.
      body: `(layer, x, extra) -> (x, output)`.
      x: the input of the first layer.
      extras: pytree with a leading layer axis, or None: a slice for each layer (of a cache, for example).
      remat: a key of `config.REMAT_POLICIES`.
      unroll: unroll the scan in the compiled program: faster for few small layers on CPU.

    Returns:
      The final x, and the outputs stacked over layers.
    """
    graphdef, state = nnx.split(layers)

    def step(carry: Array, sliced: tuple[Any, Any]) -> tuple[Array, Any]:
        layer_state, extra = sliced
        return body(nnx.merge(graphdef, layer_state), carry, extra)

    run = _REMAT[remat](step)
    if any_unstacked(state):
        return run_layers(run, x, state, extras)
    return jax.lax.scan(run, x, (state, extras), unroll=unroll or 1)


class Linear(nnx.Module):
    """`x @ kernel + bias` in the dtype of x; kernel `[in, out]`, or a `LowRank`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        init: Callable[..., Array] = fan_in_init,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        kernel: Any = self.kernel.get_value()
        adapted = isinstance(kernel, LowRank)
        y = kernel.product(x) if adapted else matmul(x, kernel.astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale`, computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm with scale and bias, computed in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, no biases: the MLP of Qwen2.5 and of the flow head."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.gate = Linear(width, hidden, bias=False, rngs=rngs)
        self.up = Linear(width, hidden, bias=False, rngs=rngs)
        self.down = Linear(hidden, width, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        hidden = constrain(jax.nn.silu(self.gate(x)) * self.up(x), "batch", "sequence", "mlp")
        return constrain(self.down(hidden), "batch", "sequence", "width")
