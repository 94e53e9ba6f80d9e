"""The cache of latents: contents, keys, and interruptions."""

import numpy as np
import pytest

from tuna_jax.emoji.latent_pool import encode_pool
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.utils.fingerprint import fingerprint


def encode(images):
    """An encoder that keeps four pixels of each image."""
    picked = images[:, ::48, ::48].astype(np.float32)[:, None] / 255
    return picked, np.full_like(picked, 0.25)


def pool(tmp_path, encoder=encode, **options):
    settings = {"count": 10, "key": "k", "batch_size": 4, "progress": False, "dtype": "float32"}
    return encode_pool(SceneSource(), encode=encoder, directory=tmp_path, **(settings | options))


def test_latents_belong_to_their_scenes(tmp_path):
    latents = pool(tmp_path)
    assert len(latents) == 10
    assert latents.latent_shape == (1, 2, 2, 3)
    expected, _ = encode(np.stack([render(latents.source[i]) for i in range(10)]))
    np.testing.assert_array_equal(latents.mean, expected)
    assert (latents.std == 0.25).all()


def test_a_second_call_encodes_nothing(tmp_path):
    first = pool(tmp_path)

    def refuse(images):
        raise AssertionError("encoded again")

    np.testing.assert_array_equal(pool(tmp_path, refuse).mean, first.mean)


@pytest.mark.parametrize("change", [{"key": "other"}, {"count": 11}, {"dtype": "float16"}])
def test_other_settings_use_another_folder(tmp_path, change):
    pool(tmp_path)
    calls = []

    def count(images):
        calls.append(len(images))
        return encode(images)

    pool(tmp_path, count, **change)
    assert calls == [4, 4, 4], "every call must have the same number of images"


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    calls = []

    def stop(images):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        pool(tmp_path, stop)
    assert not list((tmp_path / "latents").iterdir())
    assert len(pool(tmp_path)) == 10


def test_samples_follow_the_posterior(tmp_path):
    latents = pool(tmp_path)
    draws = np.stack([latents.sample(3, np.random.default_rng(i)) for i in range(2000)])
    assert draws.dtype == np.float32
    np.testing.assert_allclose(draws.mean(0), latents.mean[3], atol=0.03)
    np.testing.assert_allclose(draws.std(0), 0.25, rtol=0.1)
    narrow = np.stack([latents.sample(3, np.random.default_rng(i), 0.5) for i in range(2000)])
    np.testing.assert_allclose(narrow.std(0), 0.125, rtol=0.1)
    np.testing.assert_array_equal(latents.sample(3, np.random.default_rng(0), 0.0), latents.mean[3])


def test_invalid_encoder_outputs_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"\[4, T, h, w, C\]"):
        pool(tmp_path, lambda images: (images[:, 0], images[:, 0]))
    with pytest.raises(ValueError, match="not finite"):
        pool(tmp_path, lambda images: (encode(images)[0] * np.nan, encode(images)[1]))
    with pytest.raises(ValueError, match="count"):
        pool(tmp_path, count=0)


def test_fingerprints_distinguish_trees():
    tree = {"a": {"w": np.arange(4.0)}, "b": np.zeros((2, 2))}
    same = {"b": np.zeros((2, 2)), "a": {"w": np.arange(4.0)}}
    assert fingerprint(tree) == fingerprint(same)
    changed = {"a": {"w": np.arange(4.0)}, "b": np.eye(2)}
    renamed = {"a": {"v": np.arange(4.0)}, "b": np.zeros((2, 2))}
    reshaped = {"a": {"w": np.arange(4.0)}, "b": np.zeros((4, 1))}
    flat = {"a": {"w": np.arange(4.0), "b": np.zeros((2, 2))}}
    hashes = [fingerprint(item) for item in (tree, changed, renamed, reshaped, flat)]
    assert len(set(hashes)) == 5
