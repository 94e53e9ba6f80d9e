"""The scene source: determinism, what is held out, and where things stand."""

import itertools
from collections import Counter

import pytest

from tuna_jax.emoji.world import scenes
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, PLACES, SceneSource


def pairs_of(scene):
    return {frozenset(pair) for pair in itertools.combinations(set(scene.names), 2)}


def test_a_scene_depends_on_seed_and_index_alone():
    one, other = SceneSource("train", 3), SceneSource("train", 3, length=50)
    backwards = {i: other[i] for i in reversed(range(50))}
    assert [one[i] for i in range(50)] == [backwards[i] for i in range(50)]
    assert [SceneSource("train", 4)[i] for i in range(50)] != [one[i] for i in range(50)]
    assert one[7] is not one[7]


def test_the_first_scenes_stay_what_they_are():
    """Cached latents and shipped weights rely on it: whoever changes this raises `world` in settings()."""
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


def test_nothing_held_out_occurs_in_training(train):
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
    # And the scan is wide enough to mean something.
    assert len(singles) > 1700
    assert len(together) > 1500


def test_the_test_splits_have_held_out_combinations_alone(train):
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


def test_what_is_held_out_is_the_same_for_every_seed_and_order():
    assert scenes.is_held_out_pair("dog", "cat") == scenes.is_held_out_pair("cat", "dog")
    for seed in range(3):
        source = SceneSource("train", seed)
        assert not any(scenes.is_held_out(source[i]) for i in range(1000))


def test_shares_held_out():
    triples = list(itertools.product(NAMES, GROUNDS, PLACES))
    share = sum(scenes.is_held_out_single(*triple) for triple in triples) / len(triples)
    assert 0.13 < share < 0.17
    pairs = list(itertools.combinations(NAMES, 2))
    share = sum(scenes.is_held_out_pair(*pair) for pair in pairs) / len(pairs)
    assert 0.08 < share < 0.12


def test_every_name_ground_and_place_is_trained(train):
    together = {(name, scene.ground) for scene in train for name in scene.names}
    assert together == set(itertools.product(NAMES, GROUNDS))
    singles = [scene for scene in train if scene.layout == "single"]
    assert {(s.names[0], s.place) for s in singles} == set(itertools.product(NAMES, PLACES))


def test_layouts_come_as_often_as_their_weights_say(train):
    found = Counter(scene.layout for scene in train)
    for layout, weight in scenes.DEFAULT_WEIGHTS.items():
        assert abs(found[layout] / len(train) - weight) < 0.02
    only = SceneSource("train", weights={"groups": 2.0})
    assert {only[i].layout for i in range(50)} == {"groups"}


def test_objects_stay_inside_the_picture_and_do_not_overlap(train):
    for scene in train[:3000]:
        assert len(scene.things) == sum(scene.counts) <= 4
        for thing in scene.things:
            assert thing.left >= 0
            assert thing.top >= 0
            assert max(thing.left, thing.top) + thing.size <= 64
        for a, b in itertools.combinations(scene.things, 2):
            apart = abs(a.left - b.left) >= min(a.size, b.size) - 1
            assert apart or abs(a.top - b.top) >= min(a.size, b.size) - 1


def test_positions_are_what_the_scene_says(train):
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


def test_larger_pictures_scale():
    small, large = SceneSource("train", 5, 64), SceneSource("train", 5, 128)
    for i in range(30):
        assert large[i].names == small[i].names
        assert max(t.left + t.size for t in large[i].things) <= 128
    assert max(t.size for i in range(30) for t in large[i].things) >= 88


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "unknown split 'validation'.*test_pairs"),
        ({"weights": {"singel": 1.0}}, "singel.*single"),
        ({"weights": {"single": 0.0}}, "no layout"),
        ({"size": 65}, "65.*multiple of 16"),
        ({"names": ["dog", "zebra"]}, "zebra"),
        ({"names": ["dog"]}, "give more names"),
        ({"middle": 1.5}, "1.5"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneSource(**arguments)


def test_an_index_outside_is_an_error():
    with pytest.raises(IndexError, match="10"):
        SceneSource(length=10)[10]
    with pytest.raises(IndexError):
        SceneSource(length=10)[-1]
