"""Modulation: the vectors of a span on its own tokens, and 0 on text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tuna_jax.models.flow_head import Modulation


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_every_token_has_its_own_slots_vectors_and_text_has_none(slots: int) -> None:
    """For both implementations: exact copies, whose gradients are sums over a slot's tokens."""
    width, chunks = 8, 3
    modulation = Modulation(width, chunks, rngs=nnx.Rngs(0))
    kernel = jax.random.normal(jax.random.key(0), modulation.linear.kernel[...].shape)
    modulation.linear.kernel[...] = kernel
    time = jax.random.normal(jax.random.key(1), (2, slots, width))
    slot = jax.random.randint(jax.random.key(2), (2, 11), -1, slots)
    one_hot = jax.nn.one_hot(slot, slots)
    weight = jax.random.normal(jax.random.key(3), (chunks, 2, 11, width))

    on_tokens = jnp.stack(modulation(time, one_hot))
    vectors = modulation.linear(jax.nn.silu(time)).reshape(2, slots, chunks, width)
    for row, token in np.ndindex(2, 11):
        at = int(slot[row, token])
        wanted = np.zeros((chunks, width)) if at < 0 else vectors[row, at]
        np.testing.assert_array_equal(on_tokens[:, row, token], wanted)

    got = jax.grad(lambda time: (jnp.stack(modulation(time, one_hot)) * weight).sum())(time)

    def summed(time):
        vectors = modulation.linear(jax.nn.silu(time)).reshape(2, slots, chunks, width)
        return jnp.einsum("bncw,bsn,cbsw->", vectors, one_hot, weight, precision="highest")

    np.testing.assert_allclose(got, jax.grad(summed)(time), rtol=1e-4, atol=1e-5)


def test_one_row_of_times_serves_all_rows() -> None:
    modulation = Modulation(8, 2, rngs=nnx.Rngs(0))
    modulation.linear.bias[...] = jnp.arange(16.0)
    one_hot = jax.nn.one_hot(jnp.asarray([[-1, 0, 0], [0, 0, -1]]), 1)
    one = modulation(jnp.ones((1, 1, 8)), one_hot)
    all_rows = modulation(jnp.ones((2, 1, 8)), one_hot)
    np.testing.assert_array_equal(jnp.stack(one), jnp.stack(all_rows))
    assert one[0].shape == (2, 3, 8)
