"""Sampling with the prefix cache against sampling without a cache, over whole trajectories."""

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
from tuna_jax.inference.generation.prefix_cache import Prefix, prefill, span_prediction, text_prefix
from tuna_jax.models import tuna

CONFIG = preset("tiny")
# The zeros of AdaLN-Zero would hide dependencies.
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)


def _generation() -> tuple[Prefix, Prefix]:
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


def _two_sources() -> tuple[Prefix, Prefix]:
    """Of different lengths before the span, and each with its own two pictures."""
    sources = jax.random.normal(jax.random.key(9), (2, 2, 1, 2, 2, 8))
    spans = jnp.asarray([[[2, 5], [9, 5]]] * 2)
    given = [1, 3, 9, 9, 9, 9, 9, 4, 3, 9, 9, 9, 9, 9, 4]
    long = jnp.asarray([[*given, 2, 5, 3], [*given, 6, 3, 0]])
    return (
        Prefix(long, jnp.asarray([18, 17]), spans, sources),
        Prefix(jnp.asarray([[*given, 3]] * 2), jnp.asarray([16, 16]), spans, sources),
    )


CASES = {
    "image": (_generation, 1),
    "edit": (_editing, 1),
    "video": (_generation, 3),
    "edit of two": (_two_sources, 1),
    "first frame": (_editing, 3),
}
# Each task runs with one solver here, and with the other one in the test of intervals: a pair compiles for seconds.
ALWAYS_GUIDED = [("image", "euler"), ("edit", "heun"), ("video", "euler"), ("edit of two", "euler")]
ALWAYS_GUIDED += [("first frame", "euler")]
IN_AN_INTERVAL = [("image", "heun"), ("edit", "euler"), ("video", "heun")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), ALWAYS_GUIDED)
def test_both_follow_the_same_trajectory(name: str, solver: str) -> None:
    make, frames = CASES[name]
    positive, negative = make()
    # Both rows have the same noise, so that their results differ only by their prompts.
    noise = jnp.tile(jax.random.normal(jax.random.key(5), (1, frames, 2, 2, 8)), (2, 1, 1, 1, 1))
    options = {"guidance": 2.0, "steps": 9, "solver": solver, "trajectory": True}
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **options)
    whole = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, **options)
    assert whole.shape == (9, *noise.shape)
    assert float(jnp.linalg.norm(whole[-1, 0] - whole[-1, 1])) > 0.01
    for state, expected in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(state - expected) / jnp.linalg.norm(expected)) < 1e-5


def _without_images(prefix: Prefix) -> Prefix:
    """Only text: the slots are there, as in the branches that it is joined with, and unused."""
    tokens = jnp.asarray([[1, 3]] * len(prefix.tokens))
    spans = jnp.full_like(prefix.spans, -1)
    return Prefix(tokens, jnp.asarray([2] * len(tokens)), spans, prefix.latents)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edit of two", "first frame"])
def test_three_branches_follow_the_same_trajectory(name: str) -> None:
    make, frames = CASES[name]
    positive, negative = make()
    noise = jax.random.normal(jax.random.key(5), (2, frames, 2, 2, 8))
    branches = {"negative": negative, "textual": _without_images(positive)}
    options = {"guidance": 2.0, "image_guidance": 1.7, "steps": 4, "trajectory": True}
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, **branches, **options)
    whole = reference.sample(CONFIG, PARAMS, positive, noise, **branches, **options)
    for state, expected in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(state - expected) / jnp.linalg.norm(expected)) < 1e-5
    options["image_guidance"] = 1.0
    two = flow_sampler.sample(CONFIG, PARAMS, positive, noise, **branches, **options)
    assert float(jnp.abs(two[-1] - cached[-1]).max()) > 0.01
    # With a scale of 1 the third branch cancels out, and is not run.
    same = reference.sample(CONFIG, PARAMS, positive, noise, **branches, **options)
    assert float(jnp.linalg.norm(two[-1] - same[-1]) / jnp.linalg.norm(same[-1])) < 1e-5
    without = flow_sampler.sample(
        CONFIG, PARAMS, positive, noise, negative=negative, guidance=2.0, steps=4
    )
    np.testing.assert_array_equal(two[-1], without)
    with pytest.raises(ValueError, match="image_guidance 2.*without the images"):
        flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, image_guidance=2.0)


def test_the_scales_of_images_and_text_are_those_of_instruct_pix2pix() -> None:
    both, image, neither = (jnp.asarray([value]) for value in (7.0, 4.0, 2.0))
    assert float(flow.guided_by_image_and_text(both, image, neither, 3.0, 1.5)[0]) == 14.0
    assert float(flow.guided_by_image_and_text(both, image, neither, 3.0, 1.0)[0]) == 13.0
    assert float(flow.guided(both, image, 3.0)[0]) == 13.0


def test_padding_changes_nothing_and_too_small_a_length_is_an_error() -> None:
    positive, negative = _generation()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    plain = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, steps=2)
    padded = reference.sample(
        CONFIG, PARAMS, positive, noise, negative=negative, steps=2, length=24
    )
    np.testing.assert_allclose(plain, padded, atol=1e-5)
    with pytest.raises(ValueError, match="length is 12"):
        reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, length=12)


def test_without_a_negative_prefix_there_is_no_guidance() -> None:
    positive, _ = _generation()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    whole = reference.sample(CONFIG, PARAMS, positive, noise, steps=2)
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, guidance=1.0, steps=2)
    np.testing.assert_allclose(whole, cached, atol=1e-5)


def test_text_is_the_same_with_and_without_the_cache() -> None:
    prompts, _ = _editing()  # An image and some text tokens per row.
    cached = text_decoder.generate(
        CONFIG, PARAMS, prompts, jax.random.key(0), eos=-1, max_new_tokens=5
    )
    whole = reference.generate(CONFIG, PARAMS, prompts, max_new_tokens=5)
    np.testing.assert_array_equal(whole, cached.tokens)
    assert len(np.unique(np.asarray(whole))) > 1


GRID = flow.time_grid(9)
# The grid's 3rd to 6th time, an interval whose start is not a time of the grid, and one without a time of the grid.
INTERVALS = [(float(GRID[2]), float(GRID[5])), (0.3, 1.0), (0.001, 0.002)]


@pytest.mark.slow
@pytest.mark.parametrize("interval", INTERVALS, ids=["middle", "end", "never"])
@pytest.mark.parametrize(("name", "solver"), IN_AN_INTERVAL)
def test_a_guidance_interval_gives_both_the_same(
    name: str, interval: tuple[float, float], solver: str
) -> None:
    make, frames = CASES[name]
    positive, negative = make()
    noise = jax.random.normal(jax.random.key(5), (2, frames, 2, 2, 8))
    options = {"guidance": 4.0, "steps": 9, "solver": solver, "trajectory": True}
    options["guidance_interval"] = interval
    cached = flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **options)
    whole = reference.sample(CONFIG, PARAMS, positive, noise, negative=negative, **options)
    for state, expected in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(state - expected) / jnp.linalg.norm(expected)) < 1e-5


def test_guidance_is_applied_only_within_its_interval() -> None:
    positive, negative = _generation()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))

    def states(**options: Any) -> Any:
        options = {"guidance": 4.0, "steps": 9, "trajectory": True} | options
        return flow_sampler.sample(CONFIG, PARAMS, positive, noise, negative=negative, **options)

    @jax.jit
    def velocity(prefix: Prefix, x: jax.Array, t: jax.Array) -> jax.Array:
        cache, _ = prefill(CONFIG, PARAMS, prefix, prefix.tokens.shape[1] + 5, with_flow_head=True)
        return span_prediction(CONFIG, PARAMS, cache, prefix.lengths, x, jnp.float32(t))

    never, always, within = states(guidance=1.0), states(), states(guidance_interval=INTERVALS[0])
    np.testing.assert_array_equal(always, states(guidance_interval=(0.0, 1.0)))
    # State i follows the step that begins at time i of the grid.
    np.testing.assert_allclose(within[:2], never[:2], atol=1e-6)
    for step in range(9):
        x, dt = noise if step == 0 else within[step - 1], GRID[step + 1] - GRID[step]
        branches = [velocity(prefix, x, GRID[step]) for prefix in (positive, negative)]
        v = flow.guided(*branches, 4.0) if 2 <= step <= 5 else branches[0]
        np.testing.assert_allclose(within[step], x + dt * v, atol=1e-5)
    assert float(jnp.abs(within[-1] - never[-1]).max()) > 0.01
    assert float(jnp.abs(within[-1] - always[-1]).max()) > 0.01


def _branches(jaxpr: Any) -> Iterator[tuple[Any, ...]]:
    """The branches of every `lax.cond` in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            yield equation.params["branches"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from _branches(inner)


def test_outside_the_interval_the_negative_branch_does_not_run() -> None:
    positive, negative = _generation()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))

    def program(**options: Any) -> Any:
        def sample(noise: jax.Array) -> jax.Array:
            return flow_sampler.sample(
                CONFIG, PARAMS, positive, noise, negative=negative, **options
            )

        return jax.make_jaxpr(sample)(noise).jaxpr

    assert not list(_branches(program()))
    ((unguided, guided),) = _branches(program(guidance_interval=(0.1, 0.9)))
    # The representation encoder, which both branches share, is a tenth of the work.
    assert flops.count(unguided) < 0.6 * flops.count(guided)


def test_half_precision_has_both_branches_too() -> None:
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    positive, negative = _generation()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    options = {"negative": negative, "steps": 3, "guidance": 3.0, "guidance_interval": (0.3, 0.8)}
    latents = flow_sampler.sample(config, PARAMS, positive, noise, **options)
    assert latents.dtype == jnp.float32
    expected = flow_sampler.sample(CONFIG, PARAMS, positive, noise, **options)
    np.testing.assert_allclose(latents, expected, atol=0.2)
