"""Sampling of the models on pixels: with the prefix cache as without, over whole trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.inference.generation import flow_sampler, prefix_cache, reference
from tuna_jax.models import tuna

TEXT = prefix_cache.text_prefix(
    np.asarray([[1, 2, 3, 4, 5, 6], [1, 7, 8, 6, 0, 0]], np.int32), np.asarray([6, 4], np.int32)
)
EMPTY = prefix_cache.text_prefix(np.asarray([[1, 6]] * 2, np.int32), np.asarray([2, 2], np.int32))


def _editing() -> tuple[prefix_cache.Prefix, prefix_cache.Prefix]:
    source = jax.random.normal(jax.random.key(8), (2, 1, 1, 2, 2, 768))
    spans = jnp.asarray([[[1, 5]], [[1, 5]]])
    long = jnp.asarray([[1, 9, 9, 9, 9, 9, 2, 3, 6], [1, 9, 9, 9, 9, 9, 4, 6, 0]])
    short = jnp.asarray([[1, 9, 9, 9, 9, 9, 6]] * 2)
    return (
        prefix_cache.Prefix(long, jnp.asarray([9, 8]), spans, source),
        prefix_cache.Prefix(short, jnp.asarray([7, 7]), spans, source),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuna_r_tiny", "tuna_2_tiny"])
@pytest.mark.parametrize(
    ("editing", "solver", "interval"),
    [(False, "heun", (0.0, 1.0)), (True, "euler", (0.2, 0.7))],
    ids=["image-heun", "edit-euler-interval"],
)
def test_a_cached_trajectory_is_the_uncached_one(
    name: str, editing: bool, solver: str, interval: tuple[float, float]
) -> None:
    config = preset(name)
    params = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
        tuna.init(config, jax.random.key(0)),
    )
    positive, negative = _editing() if editing else (TEXT, EMPTY)
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 768))
    options = {
        "negative": negative,
        "guidance": 2.0,
        "guidance_interval": interval,
        "steps": 4,
        "shift": 1.0,
        "solver": solver,
        "trajectory": True,
    }
    cached = flow_sampler.sample(config, params, positive, noise, **options)
    whole = reference.sample(config, params, positive, noise, **options)
    assert cached.shape == (4, *noise.shape)
    for step in range(4):
        error = jnp.linalg.norm(cached[step] - whole[step]) / jnp.linalg.norm(whole[step])
        assert float(error) < 1e-5
