"""Gradients against those of the plain formulas, and the shapes of parameters without `init`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import TunaConfig, preset
from tuna_jax.models import attention, tuna, vae


def _random(number: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), number), shape)


def _plain_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    end: jax.Array | None,
    start: jax.Array | None,
) -> jax.Array:
    """Softmax attention as in textbooks."""
    heads = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, heads, 2), jnp.repeat(value, heads, 2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    index = jnp.arange(key.shape[1])
    if end is not None:
        scores = jnp.where((index < end[:, :, None])[:, None], scores, -jnp.inf)
    if start is not None:
        scores = jnp.where((index >= start[:, :, None])[:, None], scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value)


@pytest.mark.parametrize("masked", ["", "end", "both"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_has_the_gradients_of_the_formula(masked: str, groups: int) -> None:
    query, weight = _random(0, 2, 7, 4, 8), _random(3, 2, 7, 4, 8)
    key, value = _random(1, 2, 7, groups, 8), _random(2, 2, 7, groups, 8)
    end = jnp.asarray([[1, 2, 6, 6, 6, 6, 7], [1, 2, 3, 4, 5, 6, 7]]) if masked else None
    start = (
        jnp.asarray([[0, 0, 0, 0, 0, 3, 3], [0, 0, 2, 2, 2, 2, 2]]) if masked == "both" else None
    )

    def ours(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(weight * attention.attention(*arrays, end, start))

    def plain(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(weight * _plain_attention(*arrays, end, start))

    result = jax.value_and_grad(ours, (0, 1, 2))(query, key, value)
    expected = jax.value_and_grad(plain, (0, 1, 2))(query, key, value)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_query_that_sees_nothing_is_uniform_and_has_no_gradient() -> None:
    """Packed padding: the outputs are finite, and the gradients of queries and keys are zero."""
    query, key, value = (_random(i, 1, 3, 2, 8) for i in range(3))
    nothing = jnp.zeros((1, 3), jnp.int32)

    def total(query: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sum(attention.attention(query, key, value, nothing) ** 2)

    seen = attention.attention(query, key, value, nothing)
    np.testing.assert_allclose(
        seen[0], jnp.broadcast_to(value[0].mean(0), seen[0].shape), atol=1e-6
    )
    for gradient in jax.grad(total, (0, 1))(query, key):
        np.testing.assert_array_equal(gradient, 0.0)


def test_half_precision_gradients_are_near_those_in_float32() -> None:
    arrays = [_random(i, 2, 16, 4, 8) for i in range(3)]

    def total(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(attention.attention(*arrays).astype(jnp.float32) ** 2)

    halves = jax.grad(total, (0, 1, 2))(*(x.astype(jnp.bfloat16) for x in arrays))
    for half, whole in zip(halves, jax.grad(total, (0, 1, 2))(*arrays), strict=True):
        assert half.dtype == jnp.bfloat16
        error = jnp.linalg.norm(half.astype(jnp.float32) - whole) / jnp.linalg.norm(whole)
        assert error < 0.02


@pytest.mark.parametrize("name", ["tiny", "emoji"])
def test_shapes_are_those_of_init(name: str) -> None:
    config: TunaConfig = preset(name)
    pairs = [
        (tuna.shapes(config), jax.eval_shape(lambda: tuna.init(config, jax.random.key(0)))),
        (vae.shapes(config.vae), jax.eval_shape(lambda: vae.init(config.vae, jax.random.key(0)))),
        (
            vae.shapes(config.vae, image_only=True),
            jax.eval_shape(lambda: vae.init(config.vae, jax.random.key(0), image_only=True)),
        ),
    ]
    for shapes, traced in pairs:
        assert jax.tree.structure(shapes) == jax.tree.structure(traced)
        for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(traced), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
