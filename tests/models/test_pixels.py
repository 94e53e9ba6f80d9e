"""Images as patches of pixels, and the models on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import PixelConfig, TunaConfig, VAEConfig, from_dict, preset
from tuna_jax.models import latent_space, pixels, tuna


def test_a_patch_has_its_pixels_row_by_row_with_three_colours() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    patches = np.asarray(pixels.patchify(jnp.asarray(image), 2))
    assert patches.shape == (2, 3, 12)
    np.testing.assert_array_equal(patches[1, 2], image[2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(pixels.unpatchify(jnp.asarray(patches), 2), image)


def test_a_strip_is_consecutive_pixels_of_the_raster() -> None:
    image = np.arange(4 * 8 * 3, dtype=np.float32).reshape(4, 8, 3)
    strips = jnp.asarray(image.reshape(2, 4, 12))
    placed = pixels.unpatchify(pixels.from_strips(strips, 2), 2)
    np.testing.assert_array_equal(placed, image)
    assert not np.array_equal(pixels.unpatchify(strips, 2), image)


def test_bytes_come_back_to_the_bit() -> None:
    config = PixelConfig(patch=4)
    clips = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 12, 3), np.uint8)
    latents, std = latent_space.posterior(config, {}, clips)
    assert latents.shape == (2, *config.latent_shape(1, 8, 12))
    assert std is None
    assert float(latents.min()) >= -1 and float(latents.max()) <= 1
    decoded = (np.asarray(latent_space.decode(config, {}, latents)) + 1) * 127.5
    np.testing.assert_array_equal(np.rint(decoded).astype(np.uint8), clips)


def test_clips_and_other_sizes_are_refused() -> None:
    config = PixelConfig()
    with pytest.raises(ValueError, match="5 frames"):
        config.latent_shape(5, 64, 64)
    with pytest.raises(ValueError, match="40.*16"):
        config.latent_shape(1, 64, 40)


def test_a_model_has_a_vae_or_pixels() -> None:
    with pytest.raises(ValueError, match="both"):
        TunaConfig(vae=VAEConfig(), pixels=PixelConfig())
    with pytest.raises(ValueError, match="neither"):
        TunaConfig(vae=None)
    with pytest.raises(ValueError, match=r"pixels\.order"):
        PixelConfig(order="spiral")
    with pytest.raises(ValueError, match="no VAE"):
        _ = preset("tuna_2_tiny").video_vae


def test_configs_are_stored_and_read() -> None:
    for name in ("tuna_r_7b", "tuna_2_tiny", "tuna_7b"):
        config = preset(name)
        assert from_dict({"preset": "tiny", **config.to_dict()}) == config
    patches = from_dict({"preset": "tuna_2_7b", "pixels": {"order": "patch"}})
    assert patches.pixels == PixelConfig(order="patch")


def test_parts_follow_the_design() -> None:
    cascade, embedded = (set(tuna.shapes(preset(n))) for n in ("tuna_r_tiny", "tuna_2_tiny"))
    assert cascade == {"representation", "connector", "time_embedding", "language", "flow_head"}
    assert embedded == {"embedding", "mask_token", "time_embedding", "language", "flow_head"}


@pytest.mark.parametrize("name", ["tuna_r_tiny", "tuna_2_tiny"])
def test_the_first_prediction_is_grey(name: str) -> None:
    config = preset(name)
    params = tuna.init(config, jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 1, 1, 2, 3, 768))
    tokens, spans = jnp.zeros((1, 10), jnp.int32), jnp.asarray([[[2, 7]]])
    out = tuna.forward(config, params, tokens, spans, latents, jnp.full((1, 1), 0.3))
    assert out.prediction is not None
    assert float(jnp.abs(out.prediction).max()) == 0.0


def test_initial_parameters_of_tuna_2() -> None:
    config = dataclasses.replace(preset("tuna_2_tiny"))
    params = tuna.init(config, jax.random.key(0))
    width = config.language.width
    kernel = np.asarray(params["embedding"]["patch"]["kernel"])
    bound = np.sqrt(6 / (768 + width))
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    assert 0.7 / np.sqrt(width) < np.asarray(params["mask_token"]).std() < 1.3 / np.sqrt(width)


def test_hiding_needs_a_mask_token() -> None:
    config = preset("tuna_r_tiny")
    model = tuna.bind(config, tuna.init(config, jax.random.key(0)))
    latents = jnp.zeros((1, 1, 1, 2, 2, 768))
    with pytest.raises(ValueError, match="mask_token"):
        model.visual_tokens(latents, jnp.ones((1, 1, 4), bool))
