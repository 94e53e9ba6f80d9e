"""cuDNN's attention against the dense one; it requires an NVIDIA GPU.

python -m pytest tests/models/test_cudnn.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.models.attention import attention, sequence_layout

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="requires an NVIDIA GPU")


def case(queries, keys, heads, kv_heads, head_dim):
    """Two rows with a span each, the queries being the last of the keys."""
    spans = jnp.asarray([[[8, keys // 2]], [[keys // 4, keys // 3]]])
    end = sequence_layout(spans, keys).visible_end[:, keys - queries :]
    random = np.random.default_rng(0)
    shapes = ((2, queries, heads, head_dim), *[(2, keys, kv_heads, head_dim)] * 2)
    arrays = [jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    return *arrays, end


def far(ours, theirs):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("heads,kv_heads,head_dim", [(12, 2, 128), (24, 8, 64), (28, 4, 128)])
@pytest.mark.parametrize("queries,keys", [(512, 512), (325, 325), (321, 413)])
def test_it_equals_the_dense_one(queries, keys, heads, kv_heads, head_dim):
    query, key, value, end = case(queries, keys, heads, kv_heads, head_dim)

    def gradients_and_outputs(backend, dtype):
        def loss(*arrays):
            arrays = [x.astype(dtype) for x in arrays]
            seen = attention(*arrays, end, backend=backend)
            return (seen.astype(jnp.float32) ** 2).sum(), seen

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)

    (gradients, seen), (exact, wanted) = (
        gradients_and_outputs("cudnn", jnp.bfloat16),
        gradients_and_outputs("xla", jnp.float32),
    )
    # bfloat16 has eight bits: a rounding error of 2**-9 in the inputs, and again in the outputs.
    assert far(seen, wanted) < 1e-2
    for ours, theirs in zip(gradients, exact, strict=True):
        assert far(ours, theirs) < 2e-2


def test_auto_takes_it():
    query, key, value, end = case(512, 512, 4, 2, 64)
    program = jax.jit(lambda *x: attention(*x, end, backend="auto")).lower(query, key, value)
    assert "cudnn" in program.as_text()
