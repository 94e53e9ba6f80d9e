"""Counted FLOPs of programs whose FLOPs are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from tuna_jax.hardware import flops

X = jnp.zeros((4, 8))
W = jnp.zeros((8, 8))
PRODUCT = 2 * 4 * 8 * 8


def counted(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


def scanned(x, w):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, None, length=5)[0]


def test_products():
    assert counted(jnp.matmul, X, W) == PRODUCT
    batched = jnp.zeros((3, 4, 8)), jnp.zeros((3, 8, 2))
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), *batched) == 3 * 2 * 4 * 8 * 2


def test_a_convolution():
    def convolve(x, kernel, groups):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )  # fmt: skip

    x = jnp.zeros((1, 8, 8, 6))
    assert counted(lambda k: convolve(x, k, 1), jnp.zeros((3, 3, 6, 10))) == 2 * 16 * 10 * 9 * 6
    assert counted(lambda k: convolve(x, k, 2), jnp.zeros((3, 3, 3, 10))) == 2 * 16 * 10 * 9 * 3


def test_a_scan_counts_every_round_and_jit_is_followed():
    assert counted(jax.jit(scanned), X, W) == 5 * PRODUCT


def test_unused_results_are_not_counted():
    assert counted(lambda x, w: (x @ w, x)[1], X, W) == 0


def test_a_branch_counts_its_most_expensive_side():
    def branch(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert counted(branch, X, W) == 2 * PRODUCT


def test_rematerialisation_is_counted():
    """Backward takes two products for each forward one; what is computed again comes on top."""

    def loss(remat):
        # Of the product's inputs: what a layer's backward pass needs, and `full` keeps only the layer's own input.
        body = lambda x, w: (jnp.sin(jnp.sin(x @ w) @ w), None)  # noqa: E731
        body = jax.checkpoint(body, prevent_cse=False) if remat else body
        return lambda x, ws: jax.lax.scan(body, x, ws)[0].sum()

    weights = jnp.zeros((5, 8, 8))
    plain = counted(jax.grad(loss(False), (0, 1)), X, weights)
    again = counted(jax.grad(loss(True), (0, 1)), X, weights)
    assert plain == 5 * 2 * 3 * PRODUCT
    assert again == 5 * 2 * 4 * PRODUCT


def test_own_gradients_are_counted():
    from tuna_jax.models.layers import matmul

    total = counted(jax.grad(lambda x, w: jnp.sin(matmul(x, w)).sum(), (0, 1)), X, W)
    assert total == 3 * PRODUCT


def test_every_device_of_a_shard_map_counts():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    split = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
    )
    assert counted(split, X, W) == PRODUCT


def test_a_kernel_counts_every_block_of_its_grid():
    def kernel(x, w, out):
        @pl.when(pl.program_id(0) < 100)
        def _():
            out[...] = x[...] @ w[...]

    def call(x, w):
        return pl.pallas_call(
            kernel,
            grid=(2,),
            in_specs=[
                pl.BlockSpec((2, 8), lambda i: (i, 0)),
                pl.BlockSpec((8, 8), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((2, 8), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((4, 8), jnp.float32),
        )(x, w)

    assert counted(call, X, W) == PRODUCT


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_model_has_the_flops_of_its_formula(remat):
    """Forward and backward of a tiny TUNA on text only: the layers' products and attention, and the text head."""
    import dataclasses

    from tuna_jax.config import preset
    from tuna_jax.models import tuna

    config = dataclasses.replace(preset("tiny"), remat=remat)
    params = jax.eval_shape(lambda: tuna.init(config, jax.random.key(0)))
    tokens = jnp.zeros((1, 32), jnp.int32)
    spans = jnp.full((1, 1, 2), -1)
    size = config.language

    def loss(params):
        hidden = tuna.forward(config, params, tokens, spans).hidden
        return jnp.square(tuna.logits(config, params, hidden)).sum()

    heads = size.heads * size.head_dim
    layer = size.width * (2 * heads + 2 * size.kv_heads * size.head_dim + 3 * size.mlp)
    attention = 2 * 32 * heads  # per token: scores and values
    forward = 2 * 32 * size.layers * (layer + attention)
    head = 2 * 32 * size.width * size.vocabulary
    counted_here = counted(jax.grad(loss), params)
    if remat == "none":
        assert counted_here == 3 * (forward + head)
    else:
        # Everything again but each layer's last product, whose result no gradient needs.
        down = 2 * 32 * size.layers * size.width * size.mlp
        assert counted_here == 3 * (forward + head) + forward - down
