"""Batching in isolation: chunk sizes, padding, keys, noise and prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.inference import batching
from tuna_jax.sequence import Grid, Special, Text, Visual, build

SPECIAL = Special(bos=300, eos=301, boi=302, eoi=303, image_pad=304, pad=306)


@pytest.mark.parametrize(
    ("visual_tokens", "rows"),
    [(0, 64), (1, 64), (128, 64), (129, 32), (1024, 8), (1025, 4), (8192, 1), (100_000, 1)],
)
def test_rows_per_chunk_are_a_power_of_two_within_the_budget(visual_tokens, rows):
    assert batching.rows_per_chunk(visual_tokens) == rows


@pytest.mark.parametrize(
    ("count", "max_rows", "sizes"),
    [
        (1, 64, [1]),
        (3, 64, [4]),
        (8, 64, [8]),
        (9, 64, [16]),
        (17, 64, [24]),
        (5, 2, [2, 2, 2]),
        (10, 4, [4, 4, 4]),
        (3, 3, [3]),
        (65, 64, [64, 64]),
    ],
)
def test_chunks_have_one_size_and_padding_is_dropped(count, max_rows, sizes):
    chunks = []

    def double(chunk):
        chunks.append(chunk)
        return 2 * chunk

    rows = np.arange(3 * count).reshape(count, 3)
    np.testing.assert_array_equal(batching.in_chunks(double, rows, max_rows), 2 * rows)
    assert [len(chunk) for chunk in chunks] == sizes
    padded = np.concatenate(chunks)[count:]
    assert (padded == rows[-1]).all(), "padding repeats the last row"


def test_lengths_are_rounded_up():
    assert [batching.round_up(length) for length in (1, 16, 17)] == [16, 16, 32]
    assert batching.round_up(9, 8) == 16


def _bits(keys):
    return np.asarray(jax.random.key_data(keys)).tolist()


def test_keys_are_derived_from_the_seed_and_the_index():
    expected = [jax.random.fold_in(jax.random.key(7), index) for index in range(3)]
    assert _bits(batching.keys(7, 3)) == _bits(jnp.stack(expected))
    assert _bits(batching.keys(7, 5))[:3] == _bits(batching.keys(7, 3))
    assert len({str(bits) for bits in _bits(batching.keys(7, 8))}) == 8


def test_a_seed_per_row_gives_the_keys_of_calls_of_their_own():
    keys = _bits(batching.keys([4, (9, 2), 4], 3))
    assert keys[0] == keys[2] == _bits(batching.keys(4, 1))[0]
    assert keys[1] == _bits(batching.keys(9, 3))[2]


@pytest.mark.parametrize("function", [batching.keys, lambda *a: batching.noise(*a, (2,))])
def test_the_number_of_seeds_is_that_of_rows(function):
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        function([1, 2], 3)


def test_noise_is_standard_normal_and_depends_only_on_the_key():
    noise = batching.noise(5, 4, (1, 16, 16, 8))
    assert noise.shape == (4, 1, 16, 16, 8) and noise.dtype == np.float32
    np.testing.assert_array_equal(batching.noise(5, 6, (1, 16, 16, 8))[:4], noise)
    np.testing.assert_array_equal(batching.noise([(5, 2)], 1, (1, 16, 16, 8))[0], noise[2])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.1


def test_a_prefix_is_padded_to_a_common_width():
    short = build([Text((1, 2))], SPECIAL)
    long = build([Text((3,) * 17)], SPECIAL)
    assert batching.width_of([short]) == 16
    prefix = batching.prefix_of([short, long], SPECIAL)
    assert prefix.tokens.shape == (2, 32)
    assert prefix.tokens[0].tolist() == [1, 2] + [SPECIAL.pad] * 30
    assert prefix.lengths.tolist() == [2, 17]
    assert prefix.spans.shape == (2, 0, 2) and prefix.latents is None
    assert batching.prefix_of([short], SPECIAL, width=48).tokens.shape == (1, 48)
    with pytest.raises(ValueError, match="17 tokens"):
        batching.prefix_of([long], SPECIAL, width=16)


def test_a_prefix_has_a_slot_for_each_latent():
    grid = Grid(1, 2, 2)
    both = build([Visual(grid), Text((1,)), Visual(grid)], SPECIAL)
    latents = np.zeros((1, 2, 1, 2, 2, 8), np.float32)
    prefix = batching.prefix_of([both], SPECIAL, latents)
    assert prefix.spans.tolist() == [[[0, 5], [6, 5]]]
    assert prefix.latents is not None and prefix.latents.shape == latents.shape
    with pytest.raises(ValueError, match="2 visual slots"):
        batching.prefix_of([both], SPECIAL, latents[:, :1])


def test_encoding_and_decoding_are_inverse_in_shape(tuna):
    clips = np.random.default_rng(0).integers(0, 256, (2, 5, 32, 48, 3), np.uint8)
    mean, std = batching.encode(tuna.config, tuna.vae_params, clips)
    assert mean.shape == std.shape == (2, 2, 2, 3, 8)
    assert mean.dtype == std.dtype == jnp.float32 and float(std.min()) > 0
    decoded = batching.decode(tuna.config, tuna.vae_params, mean)
    assert decoded.shape == clips.shape and decoded.dtype == jnp.uint8
