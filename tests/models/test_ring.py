"""The parts of ring attention on one device; tests/parallel/test_ring.py goes round a ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.models import ring, splash
from tuna_jax.models.attention import attention


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_blocks_merge_to_what_they_are_together():
    query, key, value = normal(1, 5, 4, 8), normal(1, 12, 2, 8, seed=1), normal(1, 12, 2, 8, seed=2)
    end = jnp.asarray([[1, 4, 7, 12, 9]])
    blocks = []
    for first, last in ((0, 4), (4, 12)):
        own = jnp.clip(end - first, 0, last - first)
        blocks.append(
            ring.DENSE.forward(query, key[:, first:last], value[:, first:last], None, own)
        )
    out, lse = ring.merge(*blocks)
    want, of_all = ring.DENSE.forward(query, key, value, None, end)
    np.testing.assert_allclose(out, want, atol=1e-6)
    np.testing.assert_allclose(lse, of_all, atol=1e-6)
    np.testing.assert_allclose(attention(query * 8**0.5, key, value, end), want, atol=1e-6)
    # The first query sees nothing of the second block, which then weighs nothing.
    assert (blocks[1][0][0, 0] == 0).all() and (blocks[1][1][0, :, 0] == ring.NOTHING).all()
    nothing = jnp.zeros_like(out), jnp.full_like(lse, ring.NOTHING)
    np.testing.assert_array_equal(ring.merge(nothing, blocks[0])[0], blocks[0][0])
    assert np.isfinite(ring.merge(nothing, nothing)[0]).all()


def test_the_dense_kernel_holds_few_scores():
    assert [ring._dense_keys(n) for n in (64, 4_096, 12_500, 1_000_000)] == [
        65_536,
        1_024,
        256,
        128,
    ]


@pytest.mark.slow
def test_the_kernel_sees_a_span_that_ends_after_65_535():
    """256 queries at the end of 66,560 keys, whose span ends later than 16 bits count."""
    query, key, value = (normal(1, n, 1, 8, seed=n) for n in (256, 66_560, 66_559))
    value = jnp.pad(value, ((0, 0), (0, 1), (0, 0), (0, 0)))
    end = jnp.full((1, 256), 66_500)
    kernel = splash.kernel(interpret=True, block=2_560)
    out, lse = jax.jit(kernel.forward)(query, key, value, None, end)
    want, of_all = jax.jit(ring.DENSE.forward)(query, key, value, None, end)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, of_all, atol=1e-5)
    # A packed document that starts after 65,535 is in the second block of keys; the first is not computed.
    start = jnp.full((1, 256), 65_600)
    nothing = jnp.zeros_like(out), jnp.full_like(lse, ring.NOTHING)
    visit = jax.jit(lambda *a: ring._visit(kernel, *a, start, end, nothing))
    out, lse = visit(query, key, value)
    want, of_all = jax.jit(ring.DENSE.forward)(query, key, value, start, end)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(lse, of_all, atol=1e-5)


def test_long_packed_sequences_are_visited_in_blocks(monkeypatch):
    """As those of more than 61,440 keys are; the limit is lowered."""
    monkeypatch.setattr(splash, "_PACKED_KEYS", 128)
    query, key, value = (
        normal(1, 384, 1, 8),
        normal(1, 384, 1, 8, seed=1),
        normal(1, 384, 1, 8, seed=2),
    )
    start = (jnp.arange(384) // 200 * 200)[None]
    end = jnp.minimum(start + 150, 384)
    end = jnp.maximum(end, jnp.arange(384) + 1)

    def both(backend):
        run = lambda *a: (attention(*a, end, start, backend=backend) ** 2).sum()
        traced = jax.make_jaxpr(jax.value_and_grad(run, (0, 1, 2)))(query, key, value)
        return str(traced), jax.jit(jax.value_and_grad(run, (0, 1, 2)))(query, key, value)

    (text, (got, gradients)), (_, (want, expected)) = both("splash"), both("xla")
    assert "cond[" in text, "blocks are visited one by one"
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
