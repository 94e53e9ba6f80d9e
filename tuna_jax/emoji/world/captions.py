"""Captions of scenes, and questions with exact answers.

All text is lower case without a full stop ('a dog on a blue background'); `sentence` gives the other
form. A single object in the middle is large, and its caption may omit the place.
"""

from __future__ import annotations

from typing import NamedTuple

from tuna_jax.emoji.world.nouns import noun
from tuna_jax.emoji.world.scenes import GROUNDS, Scene

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
KINDS = ("name", "ground", "where", "count", "relation", "list", "describe")

_OPPOSITE = {
    "left": ("to the left of", "to the right of", "on the left", "on the right"),
    "above": ("above", "below", "at the top", "at the bottom"),
}


class Question(NamedTuple):
    """A question about a scene or clip, its only right answer, and its kind (for scenes, one of KINDS)."""

    question: str
    answer: str
    kind: str


def with_article(word: str) -> str:
    """'an orange', 'a blue'."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def amount(name: str, count: int) -> str:
    """'a dog', 'two dogs'."""
    return noun(name).one if count == 1 else f"{NUMBERS[count]} {noun(name).plural}"


def background(ground: str) -> str:
    """'a blue background'.

    Raises:
        KeyError: an unknown colour.
    """
    if ground not in GROUNDS:
        raise KeyError(f"{ground!r} is not a ground colour; the colours are {', '.join(GROUNDS)}")
    return f"{with_article(ground)} background"


def sentence(text: str) -> str:
    """The text as a sentence: a capital first letter, and a full stop unless it ends with a mark."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'}"


def single_captions(name: str, ground: str, place: str) -> tuple[str, ...]:
    """All phrasings of one object at a place; the first is the usual one."""
    thing, back = noun(name).one, background(ground)
    spelled = (
        f"{thing} in the {place} of {back}",
        f"{back} with {thing} in the {place}",
        f"{thing} in the {place}, on {back}",
    )
    return (f"{thing} on {back}", *spelled[:2]) if place == "middle" else spelled


def pair_captions(
    names: tuple[str, str], counts: tuple[int, int], relation: str, ground: str
) -> tuple[str, ...]:
    """All phrasings of two groups, the first of which is left of or above the second."""
    first, second = (amount(name, count) for name, count in zip(names, counts, strict=True))
    back = background(ground)
    onward, backward, here, there = _OPPOSITE[relation]
    phrasings = [
        f"{first} {onward} {second}, on {back}",
        f"{second} {backward} {first}, on {back}",
        f"{first} {here} and {second} {there}, on {back}",
        f"{back} with {first} {onward} {second}",
    ]
    if relation == "left":  # Names in reading order determine the image without a relation.
        phrasings.append(f"{first} and {second} on {back}")
    return tuple(phrasings)


def count_captions(name: str, count: int, ground: str) -> tuple[str, ...]:
    """All phrasings of several objects of one kind."""
    things, back = amount(name, count), background(ground)
    return (f"{things} on {back}", f"{back} with {things}")


def captions(scene: Scene) -> tuple[str, ...]:
    """All phrasings of a scene; the first is the usual one."""
    if scene.layout == "single":
        return single_captions(scene.names[0], scene.ground, scene.place)
    if scene.layout == "count":
        return count_captions(scene.names[0], scene.counts[0], scene.ground)
    (first, second), (one, other) = scene.names, scene.counts
    return pair_captions((first, second), (one, other), scene.relation, scene.ground)


def caption(scene: Scene, phrasing: int = 0) -> str:
    """One caption of a scene; `phrasing` (modulo their number) selects it, and 0 is the usual one."""
    phrasings = captions(scene)
    return phrasings[phrasing % len(phrasings)]


def questions(scene: Scene) -> list[Question]:
    """All questions about a scene, with their exact answers."""
    result = [
        Question("what colour is the background?", scene.ground, "ground"),
        Question("how many objects are there?", NUMBERS[len(scene.things)], "count"),
        Question("describe the picture.", caption(scene), "describe"),
    ]
    if scene.layout == "single":
        name = scene.names[0]
        result.append(Question("what is this?", noun(name).one, "name"))
        result.append(Question(f"where is the {name}?", f"in the {scene.place}", "where"))
    elif scene.layout == "count":
        name, count = scene.names[0], scene.counts[0]
        plural = noun(name).plural
        result.append(Question("what are these?", amount(name, count), "name"))
        result.append(Question(f"how many {plural} are there?", NUMBERS[count], "count"))
    else:
        result += _related_questions(scene)
    return result


def _related_questions(scene: Scene) -> list[Question]:
    """The questions about two groups, without those that every scene has."""
    onward, backward, here, there = _OPPOSITE[scene.relation]
    things = [amount(name, n) for name, n in zip(scene.names, scene.counts, strict=True)]
    result = [Question("what can you see?", " and ".join(things), "list")]
    for index, (place, towards) in enumerate(((here, backward), (there, onward))):
        name, count = scene.names[index], scene.counts[index]
        word, verb = (noun(name).singular, "is") if count == 1 else (noun(name).plural, "are")
        result += [
            Question(f"where {verb} the {word}?", place, "where"),
            Question(f"what is {place}?", things[index], "relation"),
            Question(f"what is {towards} the {word}?", things[1 - index], "relation"),
        ]
        if scene.layout == "groups":
            plural = noun(name).plural
            result.append(Question(f"how many {plural} are there?", NUMBERS[count], "count"))
    return result
