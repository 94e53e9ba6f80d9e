"""The scene source: determinism, held-out combinations, and positions."""

import itertools
from collections import Counter

import pytest

from tuna_jax.emoji.world import scenes
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, PLACES, SceneSource


def pairs_of(scene):
    return {frozenset(pair) for pair in itertools.combinations(set(scene.names), 2)}


def test_a_scene_depends_only_on_seed_and_index():
    source, shorter = SceneSource("train", 3), SceneSource("train", 3, length=50)
    backwards = {i: shorter[i] for i in reversed(range(50))}
    assert [source[i] for i in range(50)] == [backwards[i] for i in range(50)]
    assert [SceneSource("train", 4)[i] for i in range(50)] != [source[i] for i in range(50)]
    assert source[7] is not source[7]


def test_the_first_scene_is_unchanged():
    """Cached latents and the VAE of the package depend on it: a change requires a new `world` in settings()."""
    source = SceneSource("train", 0)
    assert source.settings()["world"] == 3
    scene = source[0]
    assert (scene.layout, scene.names) == ("single", ("croissant",))
    assert (scene.ground, scene.place, scene.relation) == ("blue", "bottom right", "")
    assert [(t.left, t.top, t.size) for t in scene.things] == [(34, 34, 28)]
    assert scene.rgb == (123, 192, 249)


@pytest.fixture(scope="module")
def train():
    source = SceneSource("train", 11)
    return [source[i] for i in range(20_000)]


def test_training_has_no_held_out_combinations(train):
    held_pairs = {
        frozenset(pair)
        for pair in itertools.combinations(NAMES, 2)
        if scenes.is_held_out_pair(*pair)
    }
    singles = {(s.names[0], s.ground, s.place) for s in train if s.layout == "single"}
    counted = {(s.names[0], s.ground, s.counts[0]) for s in train if s.layout == "count"}
    together = set().union(*(pairs_of(scene) for scene in train))
    assert not any(scenes.is_held_out_single(*triple) for triple in singles)
    assert not any(scenes.is_held_out_count(*triple) for triple in counted)
    assert not together & held_pairs
    # There are enough scenes for the test to be meaningful.
    assert len(singles) > 1700
    assert len(together) > 1500


def test_test_splits_have_only_held_out_combinations(train):
    trained = {(s.names[0], s.ground, s.place) for s in train if s.layout == "single"}
    together = set().union(*(pairs_of(scene) for scene in train))
    source = SceneSource("test_single")
    for scene in (source[i] for i in range(500)):
        assert scene.layout == "single"
        assert scenes.is_held_out(scene)
        assert (scene.names[0], scene.ground, scene.place) not in trained
    source = SceneSource("test_pairs")
    for scene in (source[i] for i in range(500)):
        assert scene.layout == "pair"
        assert scenes.is_held_out(scene)
        assert not pairs_of(scene) & together
    source = SceneSource("test_counts")
    for scene in (source[i] for i in range(200)):
        assert scene.layout == "count"
        assert scenes.is_held_out(scene)


def test_held_out_combinations_do_not_depend_on_seed_or_order():
    assert scenes.is_held_out_pair("dog", "cat") == scenes.is_held_out_pair("cat", "dog")
    for seed in range(3):
        source = SceneSource("train", seed)
        assert not any(scenes.is_held_out(source[i]) for i in range(1000))


def test_held_out_shares():
    triples = list(itertools.product(NAMES, GROUNDS, PLACES))
    share = sum(scenes.is_held_out_single(*triple) for triple in triples) / len(triples)
    assert 0.13 < share < 0.17
    pairs = list(itertools.combinations(NAMES, 2))
    share = sum(scenes.is_held_out_pair(*pair) for pair in pairs) / len(pairs)
    assert 0.08 < share < 0.12


def test_training_has_every_name_ground_and_place(train):
    together = {(name, scene.ground) for scene in train for name in scene.names}
    assert together == set(itertools.product(NAMES, GROUNDS))
    singles = [scene for scene in train if scene.layout == "single"]
    assert {(s.names[0], s.place) for s in singles} == set(itertools.product(NAMES, PLACES))


def test_layouts_have_their_frequencies(train):
    counts = Counter(scene.layout for scene in train)
    for layout, weight in scenes.DEFAULT_WEIGHTS.items():
        assert abs(counts[layout] / len(train) - weight) < 0.02
    only = SceneSource("train", weights={"groups": 2.0})
    assert {only[i].layout for i in range(50)} == {"groups"}


def test_objects_are_inside_the_image_and_do_not_overlap(train):
    for scene in train[:3000]:
        assert len(scene.things) == sum(scene.counts) <= 4
        for thing in scene.things:
            assert thing.left >= 0
            assert thing.top >= 0
            assert max(thing.left, thing.top) + thing.size <= 64
        for a, b in itertools.combinations(scene.things, 2):
            separate = abs(a.left - b.left) >= min(a.size, b.size) - 1
            assert separate or abs(a.top - b.top) >= min(a.size, b.size) - 1


def test_boxes_agree_with_place_and_relation(train):
    for scene in train[:3000]:
        centres = [(t.left + t.size / 2, t.top + t.size / 2) for t in scene.things]
        if scene.layout == "single":
            x, y = centres[0]
            large = scene.things[0].size >= 44
            assert large == (scene.place == "middle")
            if large:
                assert abs(x - 32) <= 4
                assert abs(y - 32) <= 4
            else:
                assert ("left" in scene.place) == (x < 32)
                assert ("top" in scene.place) == (y < 32)
        elif scene.relation:
            axis = 0 if scene.relation == "left" else 1
            first = [c[axis] for c in centres[: scene.counts[0]]]
            second = [c[axis] for c in centres[scene.counts[0] :]]
            assert max(first) + 20 < min(second)


def test_larger_images_scale():
    small, large = SceneSource("train", 5, 64), SceneSource("train", 5, 128)
    for i in range(30):
        assert large[i].names == small[i].names
        assert max(t.left + t.size for t in large[i].things) <= 128
    assert max(t.size for i in range(30) for t in large[i].things) >= 88


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split 'validation'.*test_pairs"),
        ({"weights": {"singel": 1.0}}, "singel.*single"),
        ({"weights": {"single": 0.0}}, "layout"),
        ({"size": 65}, "65.*multiple of 16"),
        ({"names": ["dog", "zebra"]}, "zebra"),
        ({"names": ["dog"]}, "names.*dog"),
        ({"middle": 1.5}, "1.5"),
    ],
)
def test_invalid_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneSource(**arguments)


def test_an_index_out_of_range_is_an_error():
    with pytest.raises(IndexError, match="10"):
        SceneSource(length=10)[10]
    with pytest.raises(IndexError):
        SceneSource(length=10)[-1]
