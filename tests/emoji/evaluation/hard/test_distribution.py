"""Diversity and distance: true pictures score best, and worse pictures worse in order."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tuna_jax.emoji.evaluation.hard import distribution
from tuna_jax.emoji.evaluation.hard.judge import Seen, SeenObject
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.scenes import GROUNDS

COUNT = 120


@pytest.fixture(scope="module")
def scenes():
    return distribution.world_scenes(COUNT, first=9_000)


@pytest.fixture(scope="module")
def pictures(scenes):
    return np.stack([render_hard(scene) for scene in scenes])


@pytest.fixture(scope="module")
def true(pictures):
    return distribution.frechet(pictures)


def _distance(images):
    space = distribution.feature_space()
    return distribution.frechet_distance(space(images), space.reference)


def test_true_pictures_are_near_and_plain_grounds_are_far(true):
    assert true.value < 4 and true.count == COUNT
    assert true.ci95[0] <= true.value <= true.ci95[1] < 7
    assert true.chance > 50


def test_the_more_blurred_the_farther(true, pictures):
    found = [
        _distance(gaussian_filter(pictures.astype(float), (0, sigma, sigma, 0)).astype(np.uint8))
        for sigma in (0.6, 1.2, 4.0)
    ]
    assert true.value * 1.2 < found[0] and found == sorted(found) and found[-1] > 8 * true.value


def test_the_more_collapsed_the_farther(true, pictures):
    found = [_distance(np.repeat(pictures[:n], COUNT // n, axis=0)) for n in (30, 6)]
    assert true.value * 1.2 < found[0] and found == sorted(found) and found[-1] > 10 * true.value


def test_shifted_frequencies_are_farther_the_more_they_shift(true, scenes):
    def ground(share):
        changed = [
            dataclasses.replace(scene, ground="blue", rgb=GROUNDS["blue"])
            if i < share * COUNT
            else scene
            for i, scene in enumerate(scenes)
        ]
        return _distance(np.stack([render_hard(scene) for scene in changed]))

    def small(scene):
        groups = tuple(dataclasses.replace(group, size="small") for group in scene.groups)
        return dataclasses.replace(scene, groups=groups)

    found = [ground(share) for share in (0.25, 0.5, 1.0)]
    assert true.value < found[0] and found == sorted(found) and found[-1] > 3 * true.value
    only_small = np.stack([render_hard(small(scene)) for scene in scenes])
    assert _distance(only_small) > 1.1 * true.value


def test_a_diverse_model_is_told_from_one_that_collapses():
    captions = distribution.bare_prompts(8)
    assert len({caption.text for caption in captions}) == 8
    uniform = distribution.true_diversity(captions=8)
    assert uniform["hard_diversity"].value > 0.8
    assert uniform["hard_commonest_share"].value < 0.45

    def seen(caption, ground, cell, size):
        mention = caption.claims.mentions[0]
        colour = "red" if mention.colour is None else ""
        return Seen(ground, (SeenObject(mention.name, colour, size, cell),))

    same = [[seen(caption, "blue", 4, "small")] * 16 for caption in captions]
    scores = distribution.diversity_scores(captions, same)
    assert scores["hard_diversity"].value == 0 and scores["hard_commonest_share"].value == 1
    two = [
        [seen(caption, "blue", 4, "small"), seen(caption, "pink", 5, "large")] * 8
        for caption in captions
    ]
    scores = distribution.diversity_scores(captions, two)
    assert 0 < scores["hard_diversity"].value < uniform["hard_diversity"].value
    assert scores["hard_diversity"].by["size"] == pytest.approx(1)
    # A picture without exactly one known object does not count.
    unknown = Seen("blue", (SeenObject("", "", "", 4),))
    scores = distribution.diversity_scores(captions, [[unknown] * 16 for _ in captions])
    assert scores["hard_diversity"].value == 0
    assert scores["hard_diversity"].by["pictures with one known object"] == 0
