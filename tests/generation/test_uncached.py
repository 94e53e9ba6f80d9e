"""Sampling on the prefix cache against sampling without one, over whole trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.generation import images, text, uncached
from tuna_jax.generation.prefix import Prefix, text_prefix
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
    how = {"guidance": 2.0, "points": 10, "solver": solver, "trajectory": True}
    cached = images.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    whole = uncached.sample(CONFIG, PARAMS, positive, noise, negative=negative, **how)
    assert whole.shape == (9, *noise.shape)
    assert float(jnp.linalg.norm(whole[-1, 0] - whole[-1, 1])) > 0.01
    for one, other in zip(cached, whole, strict=True):
        assert float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other)) < 1e-5


def test_padding_changes_nothing_and_too_little_room_is_an_error() -> None:
    positive, negative = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    plain = uncached.sample(CONFIG, PARAMS, positive, noise, negative=negative, points=3)
    padded = uncached.sample(
        CONFIG, PARAMS, positive, noise, negative=negative, points=3, length=24
    )
    np.testing.assert_allclose(plain, padded, atol=1e-5)
    with pytest.raises(ValueError, match="length is 12; these sequences have up to 13 tokens"):
        uncached.sample(CONFIG, PARAMS, positive, noise, negative=negative, length=12)


def test_without_a_negative_side_there_is_no_guidance() -> None:
    positive, _ = _drawing()
    noise = jax.random.normal(jax.random.key(5), (2, 1, 2, 2, 8))
    whole = uncached.sample(CONFIG, PARAMS, positive, noise, points=3)
    cached = images.sample(CONFIG, PARAMS, positive, noise, guidance=1.0, points=3)
    np.testing.assert_allclose(whole, cached, atol=1e-5)


def test_text_is_the_same_with_and_without_the_cache() -> None:
    asked, _ = _editing()  # a picture and some words in each row
    cached = text.generate(CONFIG, PARAMS, asked, jax.random.key(0), eos=-1, max_new_tokens=5)
    whole = uncached.generate(CONFIG, PARAMS, asked, max_new_tokens=5)
    np.testing.assert_array_equal(whole, cached.tokens)
    assert len(np.unique(np.asarray(whole))) > 1
