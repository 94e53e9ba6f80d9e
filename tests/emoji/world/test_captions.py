"""Captions and questions agree with the scene: parsed back from text, and derived from the boxes."""

import re

import pytest

from tuna_jax.emoji.world import NOUNS
from tuna_jax.emoji.world.captions import (
    KINDS,
    background,
    caption,
    captions,
    questions,
    sentence,
)
from tuna_jax.emoji.world.scenes import GROUNDS, LAYOUTS, SceneSource

ONE = {item.one: (item.singular, 1) for item in NOUNS}
SEVERAL = {
    f"{word} {item.plural}": (item.singular, count)
    for item in NOUNS
    for count, word in ((2, "two"), (3, "three"), (4, "four"))
}
AMOUNTS = ONE | SEVERAL
_ANY = "|".join(sorted(map(re.escape, AMOUNTS), key=len, reverse=True))


def sample(layout, count=300, seed=0):
    source = SceneSource("train", seed, weights={layout: 1.0})
    return [source[i] for i in range(count)]


def read(text):
    """(ground, [(name, count), ...] in the order of the text, the text between two groups)."""
    grounds = re.findall(r"\ban? (\w+) background", text)
    assert len(grounds) == 1
    assert grounds[0] in GROUNDS
    article = "an" if grounds[0][0] in "aeiou" else "a"
    assert f"{article} {grounds[0]} background" in text
    rest = text.replace(f"{article} {grounds[0]} background", "GROUND")
    matches = list(re.finditer(rf"\b({_ANY})\b", rest))
    between = rest[matches[0].end() : matches[1].start()].strip() if len(matches) == 2 else rest
    return grounds[0], [AMOUNTS[match.group()] for match in matches], between


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_caption_describes_the_scene(layout):
    for scene in sample(layout):
        phrasings = captions(scene)
        assert len(set(phrasings)) == len(phrasings) >= 2
        for text in phrasings:
            ground, groups, between = read(text)
            assert ground == scene.ground
            expected = list(zip(scene.names, scene.counts, strict=True))
            assert sorted(groups) == sorted(expected)
            assert text == text.lower()
            if layout == "single":
                assert (scene.place in text) or (scene.place == "middle" and text == phrasings[0])
            if len(groups) == 2:
                swapped = groups != expected
                forward = {
                    "left": ("to the left of", "on the left and", "and"),
                    "above": ("above", "at the top and"),
                }
                backward = {"left": ("to the right of",), "above": ("below",)}
                assert between in (backward if swapped else forward)[scene.relation]


def test_phrasings_are_selected_by_number():
    scene = sample("pair", 1)[0]
    phrasings = captions(scene)
    assert [caption(scene, i) for i in range(len(phrasings))] == list(phrasings)
    assert caption(scene, len(phrasings)) == phrasings[0] == caption(scene)


def test_sentence():
    assert sentence("an owl on a blue background") == "An owl on a blue background."
    assert sentence("what is this?") == "What is this?"


def centres(scene, group):
    start = sum(scene.counts[:group])
    things = scene.things[start : start + scene.counts[group]]
    xs = [t.left + t.size / 2 for t in things]
    ys = [t.top + t.size / 2 for t in things]
    return sum(xs) / len(xs), sum(ys) / len(ys)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_follow_from_the_objects_positions(layout):
    """Derives the answers from boxes and names, independently of captions.py."""
    counts = {1: "one", 2: "two", 3: "three", 4: "four"}
    for scene in sample(layout):
        items = questions(scene)
        texts = [item.question for item in items]
        assert len(set(texts)) == len(texts), "a question has two answers"
        for question, answer, kind in items:
            assert kind in KINDS
            if kind == "ground":
                assert answer == scene.ground
            elif question == "how many objects are there?":
                assert answer == counts[len(scene.things)]
            elif kind == "count":
                named = question.removeprefix("how many ").removesuffix(" are there?")
                number = sum(
                    t.name == item.singular
                    for item in NOUNS
                    if item.plural == named
                    for t in scene.things
                )
                assert answer == counts[number]
            elif kind == "describe":
                assert read(answer)[0] == scene.ground
            elif kind == "name":
                assert AMOUNTS[answer] == (scene.names[0], len(scene.things))
            elif kind == "list":
                first, second = (AMOUNTS[part] for part in answer.split(" and "))
                assert [first[0], second[0]] == list(scene.names)
            elif kind == "where" and layout == "single":
                x, y = centres(scene, 0)
                vertical, horizontal = (
                    ("top" if y < 32 else "bottom"),
                    ("left" if x < 32 else "right"),
                )
                middle = scene.things[0].size > 40
                assert answer == ("in the middle" if middle else f"in the {vertical} {horizontal}")
            else:
                check_relation(scene, question, answer, kind)


def check_relation(scene, question, answer, kind):
    (x0, y0), (x1, y1) = centres(scene, 0), centres(scene, 1)
    sideways = abs(x0 - x1) > abs(y0 - y1)
    sides = ("on the left", "on the right") if sideways else ("at the top", "at the bottom")
    words = ("to the left of", "to the right of") if sideways else ("above", "below")
    first_is_lower = (x0 < x1) if sideways else (y0 < y1)
    groups = list(zip(scene.names, scene.counts, strict=True))
    if not first_is_lower:
        groups.reverse()
    names = [
        next(n.singular if count == 1 else n.plural for n in NOUNS if n.singular == name)
        for name, count in groups
    ]
    if kind == "where":
        word = re.fullmatch(r"where (?:is|are) the (.*)\?", question).group(1)
        assert answer == sides[names.index(word)]
    elif question.removeprefix("what is ").removesuffix("?") in sides:
        side = question.removeprefix("what is ").removesuffix("?")
        assert AMOUNTS[answer] == groups[sides.index(side)]
    else:
        word, other = re.fullmatch(
            r"what is (to the left of|to the right of|above|below) the (.*)\?", question
        ).groups()
        index = words.index(word)
        assert names[1 - index] == other
        assert AMOUNTS[answer] == groups[index]


def test_an_unknown_ground_is_an_error():
    with pytest.raises(KeyError, match="mauve.*teal"):
        background("mauve")
