"""Combinations: held-out targets, the exact rule, and instructions."""

import pytest

from tuna_jax.emoji.world.combine import CombinationSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import RELATIONS, is_held_out

COUNT = 300


@pytest.fixture(scope="module")
def items():
    source = CombinationSource()
    return [source[i] for i in range(COUNT)]


def test_an_item_depends_only_on_its_index(items):
    again = CombinationSource(length=1_000)
    assert all(again[i] == items[i] for i in (299, 0, 7))
    assert CombinationSource(seed=1)[0] != items[0] != CombinationSource("test")[0]
    with pytest.raises(IndexError, match="300"):
        CombinationSource(length=COUNT)[COUNT]
    with pytest.raises(ValueError, match="'dev'.*train, test"):
        CombinationSource("dev")
    with pytest.raises(ValueError, match="middle is 2"):
        CombinationSource(middle=2.0)


def test_only_test_targets_are_held_out(items):
    for item in items:
        assert not any(is_held_out(scene) for scene in (*item.sources, item.target))
    test = CombinationSource("test")
    assert all(is_held_out(test[i].target) for i in range(100))


def test_the_target_follows_from_the_pictures_and_the_relation(items):
    """The first object is left or above, on the first picture's ground to the shade, as small as in a corner."""
    relations = set()
    for item in items:
        first, second = item.sources
        target = item.target
        assert first.layout == second.layout == "single" and first.names != second.names
        assert target.names == (*first.names, *second.names)
        assert (target.ground, target.rgb) == (first.ground, first.rgb)
        one, other = target.things
        if target.relation == "left":
            assert one.left < other.left and one.top == other.top
        else:
            assert one.top < other.top and one.left == other.left
        assert render(target)[0, -1].tolist() == list(first.rgb)
        relations.add(target.relation)
    assert relations == set(RELATIONS)


def test_half_of_the_phrasings_do_not_name_the_objects(items):
    for item in items:
        for number, text in enumerate(item.instructions):
            named = [name in text for name in item.target.names]
            assert named == [bool(number % 2)] * 2
        assert len(set(item.instructions)) == 4
