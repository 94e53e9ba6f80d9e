"""Whole clips against chunks, images against video, and invalid inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.models import vae, vae_layers

CONFIG = preset("tiny").vae
PARAMS = vae.init(CONFIG, jax.random.key(0))

encode = jax.jit(functools.partial(vae.encode, CONFIG, PARAMS), static_argnames="chunked")
decode = jax.jit(functools.partial(vae.decode, CONFIG, PARAMS), static_argnames="chunked")


def _clip(frames: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(frames), (1, frames, 32, 32, 3), minval=-1.0)


def _relative(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_a_whole_clip_equals_its_chunks(frames: int) -> None:
    clip = _clip(frames)
    for whole, chunked in zip(encode(clip), encode(clip, chunked=True), strict=True):
        assert whole.shape == (1, 1 + (frames - 1) // 4, 2, 2, CONFIG.latent_channels)
        assert _relative(whole, chunked) < 1e-5
    latents = jax.random.normal(jax.random.key(1), encode(clip)[0].shape)
    assert decode(latents).shape == clip.shape
    assert _relative(decode(latents), decode(latents, chunked=True)) < 1e-5


def test_what_comes_later_changes_nothing_before() -> None:
    clip = _clip(9)
    changed = clip.at[:, 5:].set(0.0)
    np.testing.assert_allclose(encode(clip)[0][:, :2], encode(changed)[0][:, :2], atol=1e-6)
    assert _relative(encode(clip)[0][:, 2:], encode(changed)[0][:, 2:]) > 1e-3


def test_the_first_frame_is_encoded_as_a_image_is() -> None:
    clip = _clip(5)
    np.testing.assert_allclose(encode(clip)[0][:, :1], encode(clip[:, :1])[0], atol=1e-6)


def test_an_image_vae_inflates_to_a_video_vae_with_the_same_images() -> None:
    image_params = vae.init(CONFIG, jax.random.key(3), image_only=True)
    video_params = vae.inflate(CONFIG, image_params)
    wanted = jax.eval_shape(lambda: vae.init(CONFIG, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, video_params) == jax.tree.map(jnp.shape, wanted)
    run = jax.jit(vae.encode, static_argnums=0)
    image = _clip(1)
    single = run(CONFIG, image_params, image)[0]
    np.testing.assert_array_equal(run(CONFIG, video_params, image)[0], single)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 4, 32, 32, 3), "4 frames is not 1 \\+ 4k"), ((1, 1, 30, 32, 3), "height 30")],
)
def test_what_does_not_fit_is_refused(shape: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vae.encode(CONFIG, PARAMS, jnp.zeros(shape))


def test_the_gradient_at_a_black_patch_is_finite() -> None:
    norm = vae_layers.ChannelNorm(4)
    gradient = jax.grad(lambda x: norm(x).sum())(jnp.zeros((2, 4)))
    assert bool(jnp.isfinite(gradient).all())


def test_a_consistent_posterior_is_scaled_by_the_latents_std() -> None:
    import dataclasses

    scaled = dataclasses.replace(CONFIG, latent_std=(2.0,) * 8, consistent_posterior=True)
    log_var = jnp.zeros((1, 1, 1, 1, 8))
    assert float(vae.posterior_std(CONFIG, log_var)[0, 0, 0, 0, 0]) == 1.0
    assert float(vae.posterior_std(scaled, log_var)[0, 0, 0, 0, 0]) == 0.5


def test_by_frame_every_frame_is_the_image_that_it_would_be_by_itself() -> None:
    """With image-only weights, and with as many latent frames as frames."""
    config = dataclasses.replace(CONFIG, by_frame=True)
    params = vae.init(CONFIG, jax.random.key(3), image_only=True)
    assert config.temporal_factor == 1 and config.latent_shape(4, 32, 32)[0] == 4
    run, back = jax.jit(vae.encode, static_argnums=0), jax.jit(vae.decode, static_argnums=0)
    clip = jnp.concatenate([_clip(4), 0.5 * _clip(4)])
    latents = run(config, params, clip)[0]
    pixels = back(config, params, latents)
    assert latents.shape[:2] == (2, 4) and pixels.shape == clip.shape
    for i in range(4):
        single = run(CONFIG, params, clip[:, i : i + 1])[0]
        np.testing.assert_allclose(latents[:, i : i + 1], single, atol=1e-5)
        decoded = back(CONFIG, params, single)
        np.testing.assert_allclose(pixels[:, i : i + 1], decoded, atol=1e-4)


def test_the_first_latent_frame_does_not_depend_on_what_is_padded_behind_it() -> None:
    """Mean and spread of a clip of the first frame and zeros are those of the picture, as `i2v` needs it."""
    clip = (255 * jax.random.uniform(jax.random.key(5), (1, 5, 32, 32, 3))).astype(jnp.uint8)
    padded = clip.at[:, 1:].set(0)
    image_only = vae.init(CONFIG, jax.random.key(3), image_only=True)
    run = jax.jit(vae.posterior, static_argnums=0)
    for params in (PARAMS, image_only):
        alone = run(CONFIG, params, clip[:, :1])
        for frames in (clip, padded):
            for moments, single in zip(run(CONFIG, params, frames), alone, strict=True):
                np.testing.assert_allclose(moments[:, :1], single, atol=1e-6)
