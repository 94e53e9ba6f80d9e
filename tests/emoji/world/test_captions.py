"""Captions and questions agree with the scene: read back from text, and from where things stand."""

import re

import pytest

from tuna_jax.emoji.world import NOUNS
from tuna_jax.emoji.world import captions as phrases
from tuna_jax.emoji.world.captions import captions, questions
from tuna_jax.emoji.world.scenes import GROUNDS, LAYOUTS, SceneSource

ONE = {item.one: (item.singular, 1) for item in NOUNS}
SOME = {
    f"{word} {item.plural}": (item.singular, count)
    for item in NOUNS
    for count, word in ((2, "two"), (3, "three"), (4, "four"))
}
AMOUNTS = ONE | SOME
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
    found = list(re.finditer(rf"\b({_ANY})\b", rest))
    between = rest[found[0].end() : found[1].start()].strip() if len(found) == 2 else rest
    return grounds[0], [AMOUNTS[match.group()] for match in found], between


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_caption_says_what_is_in_the_scene(layout):
    for scene in sample(layout):
        known = captions(scene)
        assert len(set(known)) == len(known) >= 2
        for text in known:
            ground, groups, between = read(text)
            assert ground == scene.ground
            wanted = list(zip(scene.names, scene.counts, strict=True))
            assert sorted(groups) == sorted(wanted)
            assert text == text.lower()
            if layout == "single":
                assert (scene.place in text) or (scene.place == "middle" and text == known[0])
            if len(groups) == 2:
                swapped = groups != wanted
                forward = {
                    "left": ("to the left of", "on the left and", "and"),
                    "above": ("above", "at the top and"),
                }
                backward = {"left": ("to the right of",), "above": ("below",)}
                assert between in (backward if swapped else forward)[scene.relation]


def test_phrasings_are_chosen_by_number():
    scene = sample("pair", 1)[0]
    known = captions(scene)
    assert [phrases.caption(scene, i) for i in range(len(known))] == list(known)
    assert phrases.caption(scene, len(known)) == known[0] == phrases.caption(scene)


def test_sentence():
    assert phrases.sentence("an owl on a blue background") == "An owl on a blue background."
    assert phrases.sentence("what is this?") == "What is this?"


def centres(scene, group):
    start = sum(scene.counts[:group])
    things = scene.things[start : start + scene.counts[group]]
    xs = [t.left + t.size / 2 for t in things]
    ys = [t.top + t.size / 2 for t in things]
    return sum(xs) / len(xs), sum(ys) / len(ys)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_answers_follow_from_the_objects_positions(layout):
    """Answers are worked out again here from boxes and names, without the words of phrases.py."""
    counts = {1: "one", 2: "two", 3: "three", 4: "four"}
    for scene in sample(layout):
        asked = questions(scene)
        texts = [item.question for item in asked]
        assert len(set(texts)) == len(texts), "one question has two answers"
        for question, answer, kind in asked:
            assert kind in phrases.KINDS
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
                self_check_relation(scene, question, answer, kind)


def self_check_relation(scene, question, answer, kind):
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
        asked = re.fullmatch(r"where (?:is|are) the (.*)\?", question).group(1)
        assert answer == sides[names.index(asked)]
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


def test_unknown_ground_is_named():
    with pytest.raises(KeyError, match="mauve.*teal"):
        phrases.background("mauve")
