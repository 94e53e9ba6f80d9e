"""Noise on images that are asked about, and hidden tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.training import augment
from tuna_jax.training.augment import InputNoise, Masking


def _batch(target: list[list[bool]]) -> dict[str, jax.Array]:
    rows, slots = len(target), len(target[0])
    return {"is_target": jnp.asarray(target), "latents": jnp.zeros((rows, slots, 1, 5, 4, 3))}


def test_one_image_in_ten_is_noised_and_sources_of_edits_are_not() -> None:
    batch = _batch([[False, False]] * 2000 + [[False, True]] * 500)
    drawn = augment.draw(InputNoise(probability=0.1), Masking(), batch, jax.random.key(0))
    assert set(drawn) == {"input_t"}
    t = np.asarray(drawn["input_t"])
    assert (t[2000:] == 1).all()
    noised = t[:2000][t[:2000] < 1]
    assert 320 < len(noised) < 480
    assert noised.min() > 0.9 and 0.945 < noised.mean() < 0.955


def test_hidden_shares_are_those_of_tuna_2() -> None:
    batch = _batch([[False]] * 4000)
    masking = Masking(low=-0.7, high=0.3)
    hidden = augment.draw(InputNoise(), masking, batch, jax.random.key(1))["hidden_tokens"]
    counts = np.asarray(hidden).sum(-1).reshape(-1)
    assert hidden.shape == (4000, 1, 20)
    # A share below 1/20 hides none: 75 % of the images stay whole, and none loses more than 30 %.
    assert counts.max() == 5
    assert 0.73 < (counts == 0).mean() < 0.77
    np.testing.assert_allclose(np.asarray(hidden).mean((0, 1)), counts.mean() / 20, atol=0.01)


def test_counts_are_truncated() -> None:
    counts = augment.hidden_counts(jnp.asarray([-0.5, 0.0, 0.19, 0.2, 0.39]), 10)
    np.testing.assert_array_equal(counts, [0, 0, 1, 2, 3])


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.3), (0.0, 1.5), (-0.7, -0.1)])
def test_bounds_out_of_range_are_named(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"config\.masking"):
        Masking(low=low, high=high)


def test_a_probability_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"config\.input_noise\.probability"):
        InputNoise(probability=1.5)
