"""Rendering of scenes and of images for the VAE."""

import numpy as np
import pytest

from tuna_jax.emoji.world import load_art
from tuna_jax.emoji.world.rendering import Art, SceneImages, default_art, paste, render
from tuna_jax.emoji.world.scenes import SceneSource


def test_objects_are_inside_their_boxes():
    source = SceneSource("train", 2)
    for scene in (source[i] for i in range(100)):
        image = render(scene)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        outside = np.ones((64, 64), bool)
        for thing in scene.things:
            box = (
                slice(thing.top, thing.top + thing.size),
                slice(thing.left, thing.left + thing.size),
            )
            outside[box] = False
            different = np.abs(image[box].astype(int) - scene.rgb).max(-1) > 12
            assert different.mean() > 0.15, f"{thing.name} is not visible on {scene.ground}"
        assert (image[outside] == scene.rgb).all()


def test_rendering_is_a_pure_function_of_the_scene():
    scene = SceneSource("train", 2)[5]
    np.testing.assert_array_equal(render(scene), render(scene, Art()))


def test_composition_follows_the_definition_of_alpha():
    art = default_art()
    canvas = np.full((48, 48, 3), 90, np.uint8)
    canvas[:, 24:] = 200
    under = canvas.astype(np.float64)
    paste(canvas, art, "owl", 6, 4, 36)
    colour, rest = art.sprite("owl", 36)
    expected = under.copy()
    expected[4:40, 6:42] = colour / 255.0 + under[4:40, 6:42] * (rest / 255.0)
    assert np.abs(canvas - expected).max() <= 0.51


def test_small_sprites_are_averages():
    """At half the size each pixel is about the mean of four; subsampling has an error several times larger."""
    art = default_art()
    for name in ("soccer ball", "flamingo", "rainbow", "strawberry"):
        sprite = load_art([name])[0].astype(np.float64)
        cover = sprite[..., 3:] / 255
        large = sprite[..., :3] * cover + 128 * (1 - cover)
        mean = large.reshape(36, 2, 36, 2, 3).mean((1, 3))
        colour, rest = art.sprite(name, 36)
        small = colour / 255.0 + 128 * (rest / 255.0)
        assert np.abs(small - mean).mean() < 0.5 * np.abs(large[::2, ::2] - mean).mean()


def test_objects_over_the_edge_are_clipped():
    canvas = np.zeros((32, 32, 3), np.uint8)
    paste(canvas, default_art(), "heart", -12, 20, 24)
    assert canvas[20:, :12].any()
    assert not canvas[:20].any()
    paste(canvas, default_art(), "heart", 40, 40, 24)


def test_an_unknown_sprite_is_an_error():
    with pytest.raises(KeyError, match="owl"):
        Art(["dog"]).sprite("owl", 20)


def test_vae_images():
    source = SceneImages(1, names="demo")
    first = source[4]
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.float32
    assert first.min() >= -1
    assert first.max() <= 1
    np.testing.assert_array_equal(first, SceneImages(1, names="demo", length=9)[4])
    np.testing.assert_allclose((first + 1) * 127.5, source.image(4), atol=1e-3)
    plain = SceneImages(1, varied=0.0)
    np.testing.assert_array_equal(plain.image(3), render(plain.scenes[3]))
    varied = SceneImages(1, varied=1.0)
    assert any((varied.image(i) != plain.image(i)).mean() > 0.5 for i in range(5))


def test_vae_images_can_use_every_emoji():
    source = SceneImages(0, varied=1.0, names="all")
    assert len(source.varied_names) > 1000
    assert source[0].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="everything"):
        SceneImages(names="everything")
