"""Conversations about one scene: two to four questions, some of which only the turn before them makes clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tuna_jax.data.text.tokenizer import IMAGE_TAG
from tuna_jax.emoji.world.captions import Question, amount, questions
from tuna_jax.emoji.world.nouns import noun
from tuna_jax.emoji.world.scenes import Scene

LEAST, MOST = 2, 4
# 'follow': a question that cannot be understood without the one before it.
DIALOGUE_KINDS = ("name", "ground", "where", "count", "relation", "list", "describe", "follow")
_SIDES = {"left": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}


def exchanges(scene: Scene) -> list[tuple[Question, ...]]:
    """What a conversation about a scene is made of: single questions, and questions with the one that follows."""
    known: list[tuple[Question, ...]] = [(item,) for item in questions(scene)]
    if scene.layout == "single":
        name = Question("what is this?", noun(scene.names[0]).one, "name")
        known.append((name, Question("and where is it?", f"in the {scene.place}", "follow")))
    elif scene.layout in ("pair", "groups"):
        things = [amount(name, n) for name, n in zip(scene.names, scene.counts, strict=True)]
        for first in (0, 1):
            here, there = (_SIDES[scene.relation][i] for i in (first, 1 - first))
            asked = Question(f"what is {here}?", things[first], "relation")
            known.append((asked, Question(f"and {there}?", things[1 - first], "follow")))
    return known


def dialogue(scene: Scene, random: np.random.Generator) -> tuple[Question, ...]:
    """A conversation of LEAST to MOST turns about a scene; no question comes twice."""
    wanted = int(random.integers(LEAST, MOST + 1))
    known = exchanges(scene)
    turns: list[Question] = []
    # Those with a follow-up are few among many, and come first half of the time.
    order = [known[int(i)] for i in random.permutation(len(known))]
    if random.random() < 0.5:
        order.sort(key=len, reverse=True)
    for exchange in order:
        asked = {turn.question for turn in turns}
        fits = len(turns) + len(exchange) <= wanted
        if fits and not any(item.question in asked for item in exchange):
            turns += exchange
    return tuple(turns)


def messages(turns: Sequence[Question]) -> list[Mapping[str, str]]:
    """The conversation as messages for `Tokenizer.chat`, the picture before the first question."""
    said: list[Mapping[str, str]] = []
    for number, turn in enumerate(turns):
        tag = f"{IMAGE_TAG}\n" if number == 0 else ""
        said.append({"role": "user", "content": tag + turn.question})
        said.append({"role": "assistant", "content": turn.answer})
    return said
