"""Captions of hard scenes with what they claim, and questions with exact answers.

A full caption names everything: the size and colour of every object, the place of each (not of objects in groups) and
the ground. A partial one names each of them with some probability, and may name a relation in place of the places. So a
partial caption has many pictures, and `Claims` says what all of them have in common.

A scene's groups have different names, so a name identifies its group.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tuna_jax.emoji.world.captions import Question, background, with_article
from tuna_jax.emoji.world.hard.nouns import hard_noun
from tuna_jax.emoji.world.hard.scenes import PLACES, RELATIONS, Group, HardScene

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
KINDS = (
    "name",
    "colour",
    "size",
    "where",
    "count",
    "relation",
    "which",
    "ground",
    "describe",
)
DEFAULT_QUESTION_WEIGHTS: dict[str, float] = {
    "name": 3.0,
    "colour": 1.5,
    "size": 1.0,
    "where": 2.0,
    "count": 1.5,
    "relation": 2.0,
    "which": 1.0,
    "ground": 0.5,
    "describe": 1.5,
}
# Probability that a partial caption names an aspect. Relations are named in half of the captions that can have one.
NAMED = {"ground": 0.5, "place": 0.5, "size": 0.5, "colour": 0.5, "relation": 0.5}

_WORDS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "between": "between",
}


class Mention(NamedTuple):
    """What a caption says about one group; None: it leaves that open.

    Attributes:
        name: the singular.
        count: number of objects.
        colour: '' for a noun with the colours of its art.
        size: 'small' or 'large'.
        cell: of a single object.
    """

    name: str
    count: int
    colour: str | None
    size: str | None
    cell: int | None


class Relation(NamedTuple):
    """A key of RELATIONS, and the names that it relates in order."""

    relation: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Claims:
    """Everything that a caption says; a picture is right if it has these objects, and no others."""

    mentions: tuple[Mention, ...]
    relations: tuple[Relation, ...] = ()
    ground: str | None = None

    @property
    def count(self) -> int:
        """Number of objects."""
        return sum(mention.count for mention in self.mentions)


class HardCaption(NamedTuple):
    """A caption, and what it claims."""

    text: str
    claims: Claims


def phrase(mention: Mention) -> str:
    """'a small red heart', 'three dogs', 'a star in the top left'."""
    noun = hard_noun(mention.name)
    words = [word for word in (mention.size, mention.colour) if word]
    if mention.count == 1:
        text = with_article(" ".join([*words, noun.singular]))
    else:
        text = " ".join([NUMBERS[mention.count], *words, noun.plural])
    return text if mention.cell is None else f"{text} {place(mention.cell)}"


def place(cell: int) -> str:
    """'in the top left'."""
    return f"in the {PLACES[cell]}"


def listed(phrases: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def true_relations(scene: HardScene) -> list[tuple[Relation, ...]]:
    """What a caption can say about how the objects of a scene with single objects are arranged.

    Each element names every group: one relation of a pair, one 'between' of three, or two relations that start from
    the same object.
    """
    names = [group.name for group in scene.groups]
    if len(names) < 2 or scene.count != len(names):
        return []
    cells = {group.name: group.cells[0] for group in scene.groups}
    found: list[tuple[Relation, ...]] = []
    if len(names) == 2:
        for one, other in itertools.permutations(names):
            found += [(relation,) for relation in _between_two(cells, one, other)]
        return found
    for one, first, last in itertools.permutations(names):
        if RELATIONS["between"](cells[one], cells[first], cells[last]):
            found.append((Relation("between", (one, first, last)),))
        for a, b in itertools.product(
            _between_two(cells, one, first), _between_two(cells, one, last)
        ):
            # 'to the left of a and to the left of b' would not say which of the two is nearer.
            if a.relation != b.relation:
                found.append((a, b))
    return found


def _between_two(cells: dict[str, int], one: str, other: str) -> list[Relation]:
    return [
        Relation(kind, (one, other))
        for kind in ("left", "right", "above", "below")
        if RELATIONS[kind](cells[one], cells[other])
    ]


def full_caption(scene: HardScene, random: np.random.Generator | None = None) -> HardCaption:
    """The caption that names everything; without `random`, in the order of reading, with the ground last."""
    mentions = [_mention(group, scene) for group in scene.groups]
    if random is None:
        order = sorted(range(len(mentions)), key=lambda i: min(scene.groups[i].cells))
    else:
        order = random.permutation(len(mentions)).tolist()
    mentions = [mentions[i] for i in order]
    return _put_together(mentions, (), scene.ground, random)


def partial_caption(
    scene: HardScene, random: np.random.Generator, probabilities: Mapping[str, float] | None = None
) -> HardCaption:
    """A caption that names each aspect with its probability; `probabilities` replaces some of NAMED."""
    shares = {**NAMED, **(probabilities or {})}

    def named(aspect: str) -> bool:
        return bool(random.random() < shares[aspect])

    mentions = []
    for i in random.permutation(len(scene.groups)).tolist():
        mention = _mention(scene.groups[i], scene)
        if not named("size"):
            mention = mention._replace(size=None)
        if mention.colour and not named("colour"):
            mention = mention._replace(colour=None)
        if not named("place"):
            mention = mention._replace(cell=None)
        mentions.append(mention)
    possible = true_relations(scene)
    relations: tuple[Relation, ...] = ()
    if possible and named("relation"):
        relations = possible[int(random.integers(len(possible)))]
        mentions = [mention._replace(cell=None) for mention in mentions]
    ground = scene.ground if named("ground") else None
    return _put_together(mentions, relations, ground, random)


def bare_caption(scene: HardScene) -> HardCaption:
    """The caption with nothing but numbers and names: 'a heart', 'a dog and a star'."""
    mentions = [
        Mention(group.name, group.count, None if group.colour else "", None, None)
        for group in scene.groups
    ]
    return _put_together(mentions, (), None, None)


def caption(scene: HardScene, random: np.random.Generator, partial: float) -> HardCaption:
    """A random caption; with probability `partial` one that leaves things open."""
    if random.random() < partial:
        return partial_caption(scene, random)
    return full_caption(scene, random)


def _mention(group: Group, scene: HardScene) -> Mention:
    alone = scene.count == len(scene.groups)
    cell = group.cells[0] if alone else None
    return Mention(group.name, group.count, group.colour, group.size, cell)


def _put_together(
    mentions: list[Mention],
    relations: tuple[Relation, ...],
    ground: str | None,
    random: np.random.Generator | None,
) -> HardCaption:
    by_name = {mention.name: phrase(mention) for mention in mentions}
    if not relations:
        text = listed([phrase(mention) for mention in mentions])
    elif relations[0].relation == "between":
        one, first, last = (by_name[name] for name in relations[0].names)
        text = f"{one} between {first} and {last}"
    else:
        parts = [f"{_WORDS[r.relation]} {by_name[r.names[1]]}" for r in relations]
        text = f"{by_name[relations[0].names[0]]} {listed(parts)}"
    if ground is not None:
        # After relations, a comma keeps the ground from belonging to the last object.
        if random is not None and random.random() < 1 / 3:
            text = f"{background(ground)} with {text}"
        else:
            text = f"{text}{',' if len(mentions) > 1 else ''} on {background(ground)}"
    return HardCaption(text, Claims(tuple(mentions), relations, ground))


def hard_questions(scene: HardScene) -> list[Question]:
    """All questions about a scene, with their exact answers; each kind of KINDS but some 'colour', 'where', 'relation'
    and 'which' is there for every scene."""
    result = [
        Question("what colour is the background?", scene.ground, "ground"),
        Question("how many objects are there?", NUMBERS[scene.count], "count"),
        Question("describe the picture.", full_caption(scene).text, "describe"),
    ]
    for group in scene.groups:
        noun = hard_noun(group.name)
        single = group.count == 1
        word, verb = (noun.singular, "is") if single else (noun.plural, "are")
        one = with_article(noun.singular)
        result += [Question(f"what is {place(cell)}?", one, "name") for cell in group.cells]
        if group.colour:
            result.append(Question(f"what colour {verb} the {word}?", group.colour, "colour"))
        result.append(Question(f"what size {verb} the {word}?", group.size, "size"))
        if single:
            result.append(Question(f"where is the {word}?", place(group.cells[0]), "where"))
        if scene.layout in ("count", "groups"):
            result.append(
                Question(f"how many {noun.plural} are there?", NUMBERS[group.count], "count")
            )
    return result + _relation_questions(scene) + _which_questions(scene)


def _relation_questions(scene: HardScene) -> list[Question]:
    """'what is to the left of the heart?', where one object is; 'what is between the heart and the star?'."""
    singles = {group.name: group.cells[0] for group in scene.groups if group.count == 1}
    if len(singles) < 2 or scene.count != len(singles):
        return []
    result = []
    for name, cell in singles.items():
        for kind in ("left", "right", "above", "below"):
            there = [n for n, c in singles.items() if n != name and RELATIONS[kind](c, cell)]
            if len(there) == 1:
                question = f"what is {_WORDS[kind]} the {name}?"
                result.append(Question(question, with_article(there[0]), "relation"))
    for one, first, last in itertools.permutations(singles, 3):
        if RELATIONS["between"](singles[one], singles[first], singles[last]):
            question = f"what is between the {first} and the {last}?"
            result.append(Question(question, with_article(one), "relation"))
    return result


def _which_questions(scene: HardScene) -> list[Question]:
    """'what is red?' and 'what is small?', where one of several groups is."""
    result: list[Question] = []
    if len(scene.groups) < 2:
        return result
    for aspect in ("colour", "size"):
        values = [getattr(group, aspect) for group in scene.groups]
        for group, value in zip(scene.groups, values, strict=True):
            if value and values.count(value) == 1:
                text = phrase(Mention(group.name, group.count, None, None, None))
                result.append(Question(f"what is {value}?", text, "which"))
    return result
