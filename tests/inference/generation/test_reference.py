"""Sampling on the prefix cache against sampling without one, over whole trajectories."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import flow
from tuna_jax.config import preset
from tuna_jax.hardware import flops
from tuna_jax.inference.generation import flow_sampler, reference, text_decoder
from tuna_jax.inference.generation.prefix_cache import Prefix, prefill, span_velocity, text_prefix
from tuna_jax.models import tuna

CONFIG = preset("tiny")
# AdaLN-Zero would hide what depends on what.
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)


def _drawing() -> tuple[Prefix, Prefix]:
    tokens = np.asarray([[1, 2, 3, 4, 5, 6], [1, 7, 8, 6, 0, 0]], np.int32)
    empty = np.asarray([[1, 6]] * 2, np.int32)
    return (
        text_prefix(tokens, np.asarray([6, 4], np.int32)),
        text_prefix(empty, np.asarray([2, 2], np.int32)),
    )


def _editing() -> tuple[Prefix, Prefix]:
    source = jax.random.normal(jax.random.key(8), (2, 1, 1, 2, 2, 8))
    spans = jnp.asarray([[[1, 5]], [[1, 5]]])
    long = jnp.asarray([[1, 9, 9, 9, 9, 9, 2, 3, 6], [1, 9, 9, 9, 9, 9, 4, 6, 0]])
    short = jnp.asarray([[1, 9, 9, 9, 9, 9, 6]] * 2)
    return (
        Prefix(long, jnp.asarray([9, 8]), spans, source),
        Prefix(short, jnp.asarray([7, 7]), spans, source),
    )


CASES = {"image": (_drawing, 1), "edit": (_editing, 1), "video": (_drawing, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", CASES)
def test_both_follow_the_same_trajectory(name: str, solver: str) -> None:
    make, frames = CASES[name]
    positive, negative = make()
    # Both rows begin with the same noise: the prompts must matter, or equal states would say little.
    noise = jnp.tile(jax.random.normal(jax.random.key(5), (1, frames, 2, 2, 8)), (2, 1, 1, 1, 1))
    how = {"guidance": 2.0, "steps": 9, "solver": solver, "trajectory": True}
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    whole = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    assert whole.shape == (9, *noise.shape)
    assert float(jnp.linalg.norm(whole[-1, 0] - whole[-1, 1])) > 0.01
    for one, other in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other)) < 1e-5


def test_padding_changes_nothing_and_too_little_room_is_an_error() -> None:
    positive, negative = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    plain = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, steps=2)
    padded = reference.sample(
        CONFIG, PARAMS, positive, noise, negative=negative, steps=2, length=24
    )
    np.testing.assert_allclose(plain, padded, atol=1e-5)
    with pytest.raises(ValueError, match="length is 12; these sequences have up to 13 tokens"):
        reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, length=12)


def test_without_a_negative_side_there_is_no_guidance() -> None:
    positive, _ = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    whole = reference.sample(CONFIG, PARAMS, positive, noise, steps=2)
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, guidance=1.0, steps=2)
    np.testing.assert_allclose(whole, cached, atol=1e-5)


def test_text_is_the_same_with_and_without_the_cache() -> None:
    asked, _ = _editing()  # a picture and some words in each row
    cached = text_decoder.generate(
        CONFIG, PARAMS, asked, jax.random.key(0), eos=-1, max_new_tokens=5
    )
    whole = reference.generate(CONFIG, PARAMS, asked, max_new_tokens=5)
    np.testing.assert_array_equal(whole, cached.tokens)
    assert len(np.unique(np.asarray(whole))) > 1


GRID = flow.time_grid(9)
# The grid's 3rd to 6th point, an end without its like on the grid, and no point at all.
INTERVALS = [(float(GRID[2]), float(GRID[5])), (0.3, 1.0), (0.001, 0.002)]


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("interval", INTERVALS, ids=["middle", "end", "never"])
@pytest.mark.parametrize("name", CASES)
def test_a_guidance_interval_gives_both_the_same(
    name: str, interval: tuple[float, float], solver: str
) -> None:
    make, frames = CASES[name]
    positive, negative = make()
    noise = jax.random.normal(jax.random.key(5), (2, frames, 2, 2, 8))
    how = {"guidance": 4.0, "steps": 9, "solver": solver, "trajectory": True}
    how["guidance_interval"] = interval
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    whole = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    for one, other in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other)) < 1e-5


def test_guidance_is_applied_within_its_interval_alone() -> None:
    positive, negative = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))

    def states(**how: Any) -> Any:
        how = {"guidance": 4.0, "steps": 9, "trajectory": True} | how
        return flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)

    @jax.jit
    def velocity(side: Prefix, x: jax.Array, t: jax.Array) -> jax.Array:
        cache, _ = prefill(CONFIG, PARAMS, side, side.tokens.shape[1] + 5, with_flow_head=True)
        return span_velocity(CONFIG, PARAMS, cache, side.lengths, x, jnp.float32(t))

    alone, always, some = states(guidance=1.0), states(), states(guidance_interval=INTERVALS[0])
    np.testing.assert_array_equal(always, states(guidance_interval=(0.0, 1.0)))
    # State i is after the step that begins at point i of the grid.
    np.testing.assert_allclose(some[:2], alone[:2], atol=1e-6)
    for step in range(9):
        x, dt = noise if step == 0 else some[step - 1], GRID[step + 1] - GRID[step]
        sides = [velocity(side, x, GRID[step]) for side in (positive, negative)]
        v = flow.guided(*sides, 4.0) if 2 <= step <= 5 else sides[0]
        np.testing.assert_allclose(some[step], x + dt * v, atol=1e-5)
    assert float(jnp.abs(some[-1] - alone[-1]).max()) > 0.01
    assert float(jnp.abs(some[-1] - always[-1]).max()) > 0.01


def _branches(jaxpr: Any) -> Iterator[tuple[Any, ...]]:
    """The branches of every `lax.cond` in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            yield equation.params["branches"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from _branches(inner)


def test_outside_the_interval_the_negative_side_is_not_run() -> None:
    positive, negative = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))

    def program(**how: Any) -> Any:
        def draw(noise: jax.Array) -> jax.Array:
            return flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)

        return jax.make_jaxpr(draw)(noise).jaxpr

    assert not list(_branches(program()))
    ((alone, everywhere),) = _branches(program(guidance_interval=(0.1, 0.9)))
    # What both sides share, the representation encoder, is a tenth of the work.
    assert flops.count(alone) < 0.6 * flops.count(everywhere)


def test_half_precision_has_both_branches_too() -> None:
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    positive, negative = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    how = {"negative": negative, "steps": 3, "guidance": 3.0, "guidance_interval": (0.3, 0.8)}
    drawn = flow_sampler.sample(config, PARAMS, positive, noise, **how)
    assert drawn.dtype == jnp.float32
    np.testing.assert_allclose(
        drawn, flow_sampler.sample(CONFIG, PARAMS, positive, noise, **how), atol=0.2
    )
