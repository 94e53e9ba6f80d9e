"""Scenes of the hard world: deterministic, with exactly the combinations that a split may have."""

import collections
import itertools

import numpy as np
import pytest

from tuna_jax.emoji.world.hard import scenes
from tuna_jax.emoji.world.hard.nouns import COLOURED_NAMES, COLOURS, NAMES, hard_noun, variants
from tuna_jax.emoji.world.hard.rendering import HardImages, default_hard_art, render_hard, tinted
from tuna_jax.emoji.world.hard.scenes import (
    LAYOUTS,
    RELATIONS,
    SPLITS,
    HardSceneSource,
    box_of_object,
    held_out_kinds,
)
from tuna_jax.emoji.world.scenes import GROUNDS


@pytest.fixture(scope="module")
def train():
    source = HardSceneSource()
    return [source[i] for i in range(1_500)]


def test_a_scene_depends_only_on_seed_split_and_index(train):
    again = HardSceneSource(length=50)
    assert [again[i] for i in (49, 3)] == [train[49], train[3]]
    assert HardSceneSource(seed=1)[3] != train[3]
    assert len(again) == 50
    with pytest.raises(IndexError):
        again[50]
    assert HardSceneSource().settings() == HardSceneSource(length=7).settings()
    assert HardSceneSource(size=128).settings() != HardSceneSource().settings()


def test_scenes_have_one_to_five_objects_in_different_cells(train):
    for scene in train:
        cells = [cell for group in scene.groups for cell in group.cells]
        names = [group.name for group in scene.groups]
        assert 1 <= scene.count == len(cells) == len(set(cells)) <= 5
        assert set(cells) <= set(range(9)) and len(set(names)) == len(names)
        for group in scene.groups:
            assert (group.colour in COLOURS) if hard_noun(group.name).coloured else not group.colour
    counts = collections.Counter(scene.layout for scene in train)
    for layout, weight in scenes.DEFAULT_WEIGHTS.items():
        assert abs(counts[layout] / len(train) - weight) < 0.04
    for values in (
        [scene.ground for scene in train],
        [group.size for scene in train for group in scene.groups],
        [cell for scene in train for group in scene.groups for cell in group.cells],
    ):
        shares = np.array(list(collections.Counter(values).values())) / len(values)
        assert shares.max() < 1.4 / len(shares)


def test_training_has_no_held_out_combination_and_every_test_scene_has_its_own(train):
    assert not any(held_out_kinds(scene) for scene in train)
    reasons = {"test_single": "single", "test_colours": "colour", "test_counts": "count"}
    for split in SPLITS:
        source = HardSceneSource(split, seed=5)
        for scene in (source[i] for i in range(60 if split != "train" else 0)):
            assert held_out_kinds(scene) == {reasons.get(split, "pair")}
            assert scene.layout in SPLITS[split]
            if split == "test_bindings":
                first, second = (group.colour for group in scene.groups)
                assert first and second and first != second
            assert not any((g.name, scene.ground) in scenes.INVISIBLE for g in scene.groups)


def test_an_easier_world_has_fewer_nouns_and_colours():
    easier = scenes.Difficulty(nouns=8, colours=3)
    source = HardSceneSource("test_bindings", difficulty=easier)
    groups = [group for i in range(60) for group in source[i].groups]
    assert len({group.name for group in groups}) <= 8
    assert {group.colour for group in groups} <= set(list(COLOURS)[:3])
    train = HardSceneSource(difficulty=easier)
    assert len({group.name for i in range(300) for group in train[i].groups}) == 16
    assert train.settings() != HardSceneSource().settings()
    for wrong in ({"nouns": 3}, {"colours": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HardSceneSource(difficulty=scenes.Difficulty(**wrong))


def test_the_held_out_shares_are_as_stated():
    pairs = [scenes.is_held_out_pair(a, b) for a, b in itertools.combinations(NAMES, 2)]
    colours = [scenes.is_held_out_colour(n, c) for n in COLOURED_NAMES for c in COLOURS]
    counts = [scenes.is_held_out_count(n, c, k) for n, c in variants() for k in scenes.COUNTS]
    singles = [
        scenes.is_held_out_single(n, c, s, g)
        for n, c in variants()
        for s in scenes.SIZES
        for g in GROUNDS
    ]
    for flags, share in ((pairs, 0.10), (colours, 0.10), (counts, 0.10), (singles, 0.15)):
        assert abs(np.mean(flags) - share) < 0.05
    assert scenes.is_held_out_pair("dog", "cat") == scenes.is_held_out_pair("cat", "dog")
    assert not any(scenes.is_held_out_count(n, c, 1) for n, c in variants())


def test_relations_hold_within_one_row_or_column():
    left, right, above, below, between = (
        RELATIONS[name] for name in ("left", "right", "above", "below", "between")
    )
    assert left(0, 2) and right(2, 0) and above(1, 7) and below(7, 1)
    assert not left(0, 5) and not above(0, 4) and not left(2, 0) and not below(1, 7)
    assert between(4, 3, 5) and between(4, 7, 1) and not between(4, 0, 8) and not between(3, 4, 5)


def test_boxes_are_inside_their_cells_at_every_size():
    for size in (96, 112, 128):
        for cell, object_size in itertools.product(range(9), scenes.SIZES):
            left, top, side = box_of_object(cell, object_size, size)
            row, column = divmod(cell, 3)
            for start, at in ((left, column), (top, row)):
                middle = (start + side / 2) / size * 3
                assert at < middle < at + 1 and start >= 0 and start + side <= size
    assert box_of_object(4, "small", 96) == (38, 38, 20)
    assert box_of_object(4, "large", 96) == (34, 34, 28)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "test"}, "test_pairs"),
        ({"size": 64}, "96"),
        ({"size": 100}, "multiple of 16"),
        ({"weights": {"grid": 1.0}}, "layouts"),
    ],
)
def test_wrong_settings_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        HardSceneSource(**arguments)
    assert set(SPLITS["train"]) == set(LAYOUTS)


def test_rendering_is_a_pure_function_and_shows_every_attribute(train):
    scene = next(s for s in train if s.layout == "single" and s.groups[0].colour == "red")
    picture = render_hard(scene)
    assert picture.dtype == np.uint8 and picture.shape == (96, 96, 3)
    np.testing.assert_array_equal(picture, render_hard(scene))
    left, top, side = box_of_object(scene.groups[0].cells[0], scene.groups[0].size, 96)
    outside = np.ones((96, 96), bool)
    outside[top : top + side, left : left + side] = False
    assert (picture[outside] == scene.rgb).all()
    assert (picture[~outside] != scene.rgb).any()


def test_a_colour_replaces_the_arts_and_keeps_its_shape():
    art = default_hard_art()
    sprite = art._sprites["car"]
    for colour, rgb in COLOURS.items():
        result = tinted(sprite, colour)
        np.testing.assert_array_equal(result[..., 3], sprite[..., 3])
        weight = sprite[..., 3:] / 255
        mean = (result[..., :3] * weight).sum((0, 1)) / weight.sum()
        nearest = min(COLOURS, key=lambda c: np.abs(np.array(COLOURS[c]) - mean).sum())
        assert nearest == colour, (colour, rgb, mean)
    with pytest.raises(KeyError, match="dogs"):
        art.sprite("dogs", "", 20)


def test_images_for_the_vae_are_deterministic():
    images = HardImages(seed=3)
    np.testing.assert_array_equal(images[5], HardImages(seed=3, length=9)[5])
    assert images[5].dtype == np.float32 and np.abs(images[5]).max() <= 1
    assert (images.image(5) != images.image(6)).any()
