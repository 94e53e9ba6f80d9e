"""Sampling on the prefix cache against forward passes over whole sequences, and its options."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import flow
from tuna_jax.config import preset
from tuna_jax.inference.generation import flow_sampler, prefix_cache
from tuna_jax.models import tuna

CONFIG = preset("tiny")
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
NOISE = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
# Rows of different lengths: 6 and 4 tokens before the span.
POSITIVE = prefix_cache.text_prefix(
    np.asarray([[1, 2, 3, 4, 5, 6], [1, 7, 8, 6, 0, 0]], np.int32), np.asarray([6, 4], np.int32)
)
NEGATIVE = prefix_cache.text_prefix(
    np.asarray([[1, 6]] * 2, np.int32), np.asarray([2, 2], np.int32)
)


def _uncached_velocity(prompt: prefix_cache.Prefix, x: jax.Array, t: jax.Array) -> jax.Array:
    """`tuna.forward` on each row separately: the whole prefix, the span, and two tokens behind it."""
    rows = []
    for row in range(len(prompt.tokens)):
        start = int(prompt.lengths[row])
        tokens = jnp.concatenate(
            [prompt.tokens[row, :start], jnp.full((5,), 9), jnp.asarray([3, 4])]
        )
        spans = jnp.asarray([[[start, 5]]])
        latents, time = x[row][None, None], jnp.full((1, 1), t)
        if prompt.latents is not None:
            spans = jnp.concatenate([prompt.spans[row][None], spans], axis=1)
            latents = jnp.concatenate([prompt.latents[row][None], latents], axis=1)
            time = jnp.concatenate([jnp.ones((1, 1)), time], axis=1)
        out = jax.jit(functools.partial(tuna.forward, CONFIG))(
            PARAMS, tokens[None], spans, latents, time
        )
        assert out.prediction is not None
        rows.append(tuna.span_predictions(CONFIG, out.prediction, spans, latents.shape[2:])[0, -1])
    return jnp.stack(rows)


def _editing() -> tuple[prefix_cache.Prefix, prefix_cache.Prefix]:
    source = jax.random.normal(jax.random.key(8), (2, 1, 1, 2, 2, 8))
    spans = jnp.asarray([[[1, 5]], [[1, 5]]])
    long = jnp.asarray([[1, 9, 9, 9, 9, 9, 2, 3, 6], [1, 9, 9, 9, 9, 9, 4, 6, 0]])
    short = jnp.asarray([[1, 9, 9, 9, 9, 9, 6]] * 2)
    return (
        prefix_cache.Prefix(long, jnp.asarray([9, 8]), spans, source),
        prefix_cache.Prefix(short, jnp.asarray([7, 7]), spans, source),
    )


@pytest.mark.slow
@pytest.mark.parametrize("editing", [False, True], ids=["image", "edit"])
def test_a_cached_trajectory_is_the_uncached_one(editing: bool) -> None:
    positive, negative = _editing() if editing else (POSITIVE, NEGATIVE)
    cached = flow_sampler.sample(
        CONFIG, PARAMS, positive, NOISE, negative=negative, guidance=2.0, steps=3, trajectory=True
    )
    x, grid = NOISE, flow.time_grid(3)
    for step, (t, next_t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        velocity = flow.guided(
            _uncached_velocity(positive, x, t), _uncached_velocity(negative, x, t), 2.0
        )
        x = x + (next_t - t) * velocity
        error = jnp.linalg.norm(cached[step] - x) / jnp.linalg.norm(x)
        assert float(error) < 1e-5


def test_guidance_zero_and_one_use_only_the_positive_prompt() -> None:
    one = flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, guidance=1.0, steps=2)
    zero = flow_sampler.sample(
        CONFIG, PARAMS, POSITIVE, NOISE, negative=NEGATIVE, guidance=0.0, steps=2
    )
    np.testing.assert_array_equal(one, zero)
    with pytest.raises(ValueError, match=r"guidance 3\.0"):
        flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, steps=2)


def test_pixels_become_uint8_by_truncation_after_clamping() -> None:
    pixels = jnp.asarray([[-2.0, -1.0, 0.0], [0.999, 1.0, 3.0]])
    assert flow_sampler.to_uint8(pixels).tolist() == [[0, 0, 127], [254, 255, 255]]


def test_unrolled_layers_give_the_same_latents() -> None:
    """`unroll` unstacks layers and their caches before the loop over steps."""
    unrolled = dataclasses.replace(CONFIG, unroll=True)
    options: dict[str, Any] = {"negative": NEGATIVE, "guidance": 2.0, "steps": 2}
    latents = flow_sampler.sample(unrolled, PARAMS, POSITIVE, NOISE, **options)
    expected = flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, **options)
    np.testing.assert_allclose(latents, expected, atol=1e-5)


def test_invalid_options_are_named() -> None:
    with pytest.raises(ValueError, match="solver 'rk4'"):
        flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, guidance=1.0, solver="rk4")
    with pytest.raises(ValueError, match="steps"):
        flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, guidance=1.0, steps=0)
    with pytest.raises(ValueError, match="guidance_interval"):
        flow_sampler.sample(CONFIG, PARAMS, POSITIVE, NOISE, guidance_interval=(0.5, 0.1))
