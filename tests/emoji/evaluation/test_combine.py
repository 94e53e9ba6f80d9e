"""The judge of combinations: true targets, sources, swapped and shuffled results, and the ceiling of the VAE."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import combine
from tuna_jax.emoji.world.edits import pair
from tuna_jax.emoji.world.rendering import render

COUNT = 48


@pytest.fixture(scope="module")
def combined():
    """Combinations whose results are the true targets."""
    return combine.test_items(range(COUNT))


def accuracy(combined, images, judge):
    return combine.verdicts(dataclasses.replace(combined, results=images), judge).mean()


def test_true_targets_are_right(combined, judge):
    right = combine.verdicts(combined, judge)
    assert right.all()
    scores = combine.combine_scores(combined, right)
    assert scores["combine_accuracy"].count == COUNT and scores["combine_accuracy"].chance == 0.25
    assert scores["combine_unnamed_accuracy"].count == COUNT // 2


def test_an_unchanged_source_is_wrong(combined, judge):
    for source in (0, 1):
        assert accuracy(combined, combined.sources[:, source], judge) == 0


def test_the_other_order_and_the_other_relation_are_wrong(combined, judge):
    swapped, turned, other_ground = [], [], []
    for item in combined.items:
        scene, second = item.target, item.sources[1]
        other = {"left": "above", "above": "left"}[scene.relation]
        arguments = (scene.ground, scene.rgb, scene.size)
        swapped.append(render(pair(scene.names[::-1], scene.relation, *arguments)))
        turned.append(render(pair(scene.names, other, *arguments)))
        ground = (second.ground, second.rgb, scene.size)
        other_ground.append(render(pair(scene.names, scene.relation, *ground)))
    assert accuracy(combined, np.stack(swapped), judge) == 0
    assert accuracy(combined, np.stack(turned), judge) == 0
    same = np.mean([item.sources[0].ground == item.sources[1].ground for item in combined.items])
    assert accuracy(combined, np.stack(other_ground), judge) == same < 0.3


def test_shuffled_results_are_wrong(combined, judge):
    assert accuracy(combined, np.roll(combined.targets, 7, axis=0), judge) < 0.05


def test_the_ceiling_through_the_vae_is_near_full(combined, judge, through_vae):
    assert accuracy(combined, through_vae(combined.targets), judge) > 0.95


def test_a_split_gives_both_pictures_and_the_text(judge):
    def make(pairs, texts, seed):
        assert pairs.shape == (6, 2, 64, 64, 3) and len(texts) == 6
        return pairs[:, 0]

    made = combine.combine_split(make, 6)
    assert not combine.verdicts(made, judge).any() and made.strips.shape[1] == 64
    with pytest.raises(ValueError, match="combine returned uint8"):
        combine.combine_split(lambda pairs, texts, seed: pairs[:1, 0], 3)
