"""Small layers that every part shares, and the bridge between Flax modules and plain parameter dicts.

A module is a pytree that only JAX's own transforms touch. `split` turns one into `(graphdef,
params)` once; `merge` puts it
together again inside a traced function. `params` is a nested dict with string keys: our stable names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.models.logical_sharding import constrain

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """What stacked layers hold, a parameter or a cache, as an array (or what stands for one) for each of them."""

    layers: tuple[Any, ...]


def cut(stacks: Any) -> Any:
    """A tree of arrays with a leading layer axis, each as `Apart`; what has been cut is returned as it is."""
    return jax.tree.map(
        lambda leaf: leaf if _is_apart(leaf) else Apart(tuple(leaf)), stacks, is_leaf=_is_apart
    )


def apart(tree: Any) -> Any:
    """Parameters, or what is kept beside each of them, with every stack of layers cut into its layers: for a program
    that goes through them many times, or has them as its arguments.

    XLA on CPU copies a layer out of its stack before it multiplies with it. Cut before a loop over steps or tokens, a
    layer is copied once, and not every time round: most of a token's time goes into that. What has been cut is returned
    as it is.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: cut(leaf) if _in_stack(path) else leaf, tree, is_leaf=_is_apart
    )


def together(tree: Any) -> Any:
    """The inverse of `apart`; what has not been cut is returned as it is."""

    def join(leaf: Any) -> Any:
        # Layers need not be arrays: an optimizer keeps an empty node beside what it does not train.
        return jax.tree.map(lambda *x: jnp.stack(x), *leaf.layers) if _is_apart(leaf) else leaf

    return jax.tree.map(join, tree, is_leaf=_is_apart)


def _in_stack(path: tuple[Any, ...]) -> bool:
    return any(getattr(entry, "key", None) == "layers" for entry in path)


@jax.custom_vjp
def matmul(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """`x @ kernel` with its gradients written out.

    JAX's own takes the kernel's gradient as the transpose of a product, which XLA on CPU turns into
    transposed copies with the elementwise operations before them computed again.
    """
    return x @ kernel


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    to_x = jax.lax.dot_general(gradients, kernel, (((1,), (1,)), ((), ())))
    return to_x.reshape(x.shape), jax.lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def silu_product(
    gate: Float[Array, "*extent"], up: Float[Array, "*extent"]
) -> Float[Array, "*extent"]:
    """`silu(gate) * up` with its gradients written out: they want `gate` and `up` alone, so nothing else is kept."""
    return jax.nn.silu(gate) * up


def _silu_product_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return jax.nn.silu(gate) * up, (gate, up)


def _silu_product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    gate, up = saved
    sigmoid = jax.nn.sigmoid(gate)
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return gradient * up * slope, gradient * gate * sigmoid


silu_product.defvjp(_silu_product_forward, _silu_product_backward)


ATTENTION = "attention"
"""The name under which attention's outputs are known to the policies below (`jax.ad_checkpoint.checkpoint_name`)."""

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
      layers: a module made by `stacked`; its parameters may be `Apart`, which writes the layers out.
      body: `(layer, x, extra) -> (x, output)`.
      x: what flows through the layers.
      extras: pytree with a leading layer axis, or None: one slice a layer (a cache, for example). Where the
        parameters are `Apart` it may be as well.
      remat: a key of `config.REMAT_POLICIES`.
      unroll: write the layers out in the compiled program: faster for few small layers on CPU.

    Returns:
      The final x, and the outputs stacked over layers; `Apart` where the extras are.
    """
    graphdef, state = nnx.split(layers)

    def step(carry: Array, sliced: tuple[Any, Any]) -> tuple[Array, Any]:
        layer_state, extra = sliced
        return body(nnx.merge(graphdef, layer_state), carry, extra)

    run = _REMAT[remat](step)
    pieces = [leaf for leaf in jax.tree.leaves(state, is_leaf=_is_apart) if _is_apart(leaf)]
    if not pieces:
        return jax.lax.scan(run, x, (state, extras), unroll=unroll or 1)
    join = Apart if any(map(_is_apart, jax.tree.leaves(extras, is_leaf=_is_apart))) else jnp.stack
    own, extras, outputs = cut(state), cut(extras), []
    for index in range(len(pieces[0].layers)):
        layer = jax.tree.map(lambda leaf, i=index: leaf.layers[i], (own, extras), is_leaf=_is_apart)
        x, output = run(x, layer)
        outputs.append(output)
    return x, jax.tree.map(lambda *leaves: join(leaves), *outputs)


def _is_apart(leaf: Any) -> bool:
    return isinstance(leaf, Apart)


class Linear(nnx.Module):
    """`x @ kernel + bias` in the dtype of x; kernel `[in, out]`."""

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
        y = matmul(x, self.kernel[...].astype(x.dtype))
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
        hidden = constrain(silu_product(self.gate(x), self.up(x)), "batch", "sequence", "mlp")
        return constrain(self.down(hidden), "batch", "sequence", "width")
