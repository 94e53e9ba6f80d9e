"""Scenes to words: captions, and questions with exact answers.

All text is lower case without a full stop ('a dog on a blue background'); `sentence` gives the other
form. A single object in the middle is drawn large, and its caption may leave the place out.
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
    """A question about a scene, its one right answer, and its kind (one of KINDS)."""

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
    """'a blue background'; an unknown colour is an error."""
    if ground not in GROUNDS:
        raise KeyError(f"{ground!r} is no ground colour; they are {', '.join(GROUNDS)}")
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
    """All phrasings of two groups, the first of which stands left of or above the second."""
    first, second = (amount(name, count) for name, count in zip(names, counts, strict=True))
    back = background(ground)
    onward, backward, here, there = _OPPOSITE[relation]
    phrasings = [
        f"{first} {onward} {second}, on {back}",
        f"{second} {backward} {first}, on {back}",
        f"{first} {here} and {second} {there}, on {back}",
        f"{back} with {first} {onward} {second}",
    ]
    if relation == "left":  # read in the order of reading, so that the picture is still determined
        phrasings.append(f"{first} and {second} on {back}")
    return tuple(phrasings)


def count_captions(name: str, count: int, ground: str) -> tuple[str, ...]:
    """All phrasings of some objects of one kind."""
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
    """One caption of a scene; any number chooses among the phrasings, 0 is the usual one."""
    known = captions(scene)
    return known[phrasing % len(known)]


def questions(scene: Scene) -> list[Question]:
    """Every question that can be asked about a scene, with its exact answer."""
    asked = [
        Question("what colour is the background?", scene.ground, "ground"),
        Question("how many objects are there?", NUMBERS[len(scene.things)], "count"),
        Question("describe the picture.", caption(scene), "describe"),
    ]
    if scene.layout == "single":
        name = scene.names[0]
        asked.append(Question("what is this?", noun(name).one, "name"))
        asked.append(Question(f"where is the {name}?", f"in the {scene.place}", "where"))
    elif scene.layout == "count":
        name, count = scene.names[0], scene.counts[0]
        plural = noun(name).plural
        asked.append(Question("what are these?", amount(name, count), "name"))
        asked.append(Question(f"how many {plural} are there?", NUMBERS[count], "count"))
    else:
        asked += _related_questions(scene)
    return asked


def _related_questions(scene: Scene) -> list[Question]:
    """What can be asked about two groups beyond what any scene is asked."""
    onward, backward, here, there = _OPPOSITE[scene.relation]
    things = [amount(name, n) for name, n in zip(scene.names, scene.counts, strict=True)]
    asked = [Question("what can you see?", " and ".join(things), "list")]
    for index, (place, towards) in enumerate(((here, backward), (there, onward))):
        name, count = scene.names[index], scene.counts[index]
        known, verb = (noun(name).singular, "is") if count == 1 else (noun(name).plural, "are")
        asked += [
            Question(f"where {verb} the {known}?", place, "where"),
            Question(f"what is {place}?", things[index], "relation"),
            Question(f"what is {towards} the {known}?", things[1 - index], "relation"),
        ]
        if scene.layout == "groups":
            plural = noun(name).plural
            asked.append(Question(f"how many {plural} are there?", NUMBERS[count], "count"))
    return asked
