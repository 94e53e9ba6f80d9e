"""The judges: right about true images, and not satisfied by colour or shape alone."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tuna_jax.emoji.evaluation import images as tasks
from tuna_jax.emoji.evaluation.judges import (
    JUDGES,
    crop,
    edge_features,
    judge_ground,
    judge_place,
    pair_cells,
)
from tuna_jax.emoji.world.rendering import default_art, render
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, PLACE_CELLS, SceneSource


@pytest.fixture(scope="module")
def singles():
    source = SceneSource("test_single", 5)
    scenes = [source[i] for i in range(300)]
    return scenes, np.stack([render(scene) for scene in scenes])


def shares(judge, scenes, images):
    seen = judge(images, [PLACE_CELLS[s.place] for s in scenes], [s.ground for s in scenes])
    names = np.array([scene.names[0] for scene in scenes])
    return {key: float((np.array(seen[key]) == names).mean()) for key in JUDGES}


def soften(images, radius=1.0, noise=4.0):
    """Degrades images to 28 dB, about as much as a VAE of 27 dB."""
    random = np.random.default_rng(0)
    blurred = [
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
        for image in images
    ]
    noisy = np.stack(blurred) + random.normal(0, noise, images.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_true_images_are_right(judge, singles):
    scenes, images = singles
    values = shares(judge, scenes, images)
    assert values["pixels"] > 0.99
    assert values["edges"] > 0.99
    assert [scene.ground for scene in scenes] == judge_ground(images)
    right = [a == s.place for a, s in zip(judge_place(images), scenes, strict=True)]
    assert np.mean(right) > 0.99


def test_soft_images_are_right(judge, singles):
    scenes, images = singles
    soft = soften(images)
    values = shares(judge, scenes, soft)
    assert values["pixels"] > 0.98
    assert values["edges"] > 0.98
    assert [scene.ground for scene in scenes] == judge_ground(soft)


def test_ceilings_of_all_tasks(judge):
    for through in (None, soften):
        for name, score in tasks.ceilings(judge, through, count=60).items():
            assert score.value >= 0.98, name


def painted(scene, shape_of):
    """The silhouette of another emoji, filled with the mean colour of the scene's own."""
    thing = scene.things[0]
    colour, rest = default_art().sprite(thing.name, thing.size)
    mean = (colour / 255.0).sum((0, 1)) / (1 - rest / 255.0).sum()
    cover = 1 - default_art().sprite(shape_of, thing.size)[1] / 255.0
    image = np.empty((64, 64, 3))
    image[:] = scene.rgb
    box = image[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size]
    box[:] = box * (1 - cover) + mean * cover
    return image.astype(np.uint8)


def test_edges_require_the_right_shape(judge, singles):
    """Wrong shapes in the right colours, sharp and blurred, and blobs in the right colours."""
    scenes, images = singles
    wrong = np.stack([painted(s, NAMES[(NAMES.index(s.names[0]) + 17) % 64]) for s in scenes])
    assert shares(judge, scenes, wrong)["edges"] < 0.05
    assert shares(judge, scenes, soften(wrong, 1.5))["edges"] < 0.05
    blobs = soften(images, radius=7.0)
    assert shares(judge, scenes, blobs)["edges"] < 0.2


def test_pixels_require_the_right_colours(judge, singles):
    """The right shape with exchanged colour channels satisfies the edges, and often not the pixels."""
    scenes, images = singles
    exchanged = []
    for scene in scenes:
        thing, image = scene.things[0], np.empty((64, 64, 3))
        image[:] = scene.rgb
        colour, rest = default_art().sprite(thing.name, thing.size)
        box = image[thing.top : thing.top + thing.size, thing.left : thing.left + thing.size]
        box[:] = colour[..., [1, 2, 0]] / 255.0 + box * (rest / 255.0)
        exchanged.append(image.astype(np.uint8))
    values = shares(judge, scenes, np.stack(exchanged))
    assert values["edges"] > 0.8
    assert values["pixels"] < values["edges"] - 0.2


def test_another_place_is_wrong(judge):
    """The right object in another corner: the judged cell is empty."""
    source = SceneSource("train", 3, weights={"single": 1.0}, middle=0.0)
    scenes = [source[i] for i in range(100)]
    images = np.stack([render(scene) for scene in scenes])[:, :, ::-1]
    values = shares(judge, scenes, np.ascontiguousarray(images))
    assert max(values.values()) < 0.1


def test_blank_and_noise_score_chance(judge, singles):
    scenes, images = singles
    blank = np.stack([np.full((64, 64, 3), GROUNDS[s.ground], np.uint8) for s in scenes])
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    for pictures in (blank, noise):
        assert max(shares(judge, scenes, pictures).values()) < 0.08


def test_edge_features_ignore_contrast_and_inversion(singles):
    crops = crop(singles[1][:20], PLACE_CELLS["middle"])
    features = edge_features(crops)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    inverted = edge_features(255 - crops)
    np.testing.assert_allclose(features, inverted, atol=1e-5)
    weaker = edge_features(crops * 0.5)
    assert (features * weaker).sum(1).min() > 0.95


def test_crops_of_larger_pictures():
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    large = image.repeat(2, 1).repeat(2, 2)
    for cell in (*PLACE_CELLS.values(), *pair_cells("left")):
        np.testing.assert_allclose(crop(image, cell), crop(large, cell), atol=1e-3)
    with pytest.raises(ValueError, match="multiple"):
        crop(image[:, :48, :48], PLACE_CELLS["top left"])


def test_invalid_arguments_are_errors(judge):
    with pytest.raises(ValueError, match="2 images, 1 cells"):
        judge(np.zeros((2, 64, 64, 3), np.uint8), [PLACE_CELLS["middle"]], ["blue", "blue"])
    with pytest.raises(KeyError, match="mauve"):
        judge(np.zeros((1, 64, 64, 3), np.uint8), [PLACE_CELLS["middle"]], ["mauve"])
