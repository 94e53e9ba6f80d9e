"""Dialogues about one scene: two to four questions, some of which depend on the turn before."""

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
    """The parts of a dialogue about a scene: single questions, and questions with their follow-up."""
    result: list[tuple[Question, ...]] = [(item,) for item in questions(scene)]
    if scene.layout == "single":
        name = Question("what is this?", noun(scene.names[0]).one, "name")
        result.append((name, Question("and where is it?", f"in the {scene.place}", "follow")))
    elif scene.layout in ("pair", "groups"):
        things = [amount(name, n) for name, n in zip(scene.names, scene.counts, strict=True)]
        for first in (0, 1):
            here, there = (_SIDES[scene.relation][i] for i in (first, 1 - first))
            first_question = Question(f"what is {here}?", things[first], "relation")
            result.append((first_question, Question(f"and {there}?", things[1 - first], "follow")))
    return result


def dialogue(scene: Scene, random: np.random.Generator) -> tuple[Question, ...]:
    """A dialogue of at most LEAST to MOST turns about a scene; no question repeats."""
    length = int(random.integers(LEAST, MOST + 1))
    parts = exchanges(scene)
    turns: list[Question] = []
    # Few parts have a follow-up; they come first in half of the dialogues, so that they occur often enough.
    order = [parts[int(i)] for i in random.permutation(len(parts))]
    if random.random() < 0.5:
        order.sort(key=len, reverse=True)
    for exchange in order:
        used = {turn.question for turn in turns}
        fits = len(turns) + len(exchange) <= length
        if fits and not any(item.question in used for item in exchange):
            turns += exchange
    return tuple(turns)


def messages(turns: Sequence[Question]) -> list[Mapping[str, str]]:
    """The dialogue as messages for `Tokenizer.chat`, with the image before the first question."""
    result: list[Mapping[str, str]] = []
    for number, turn in enumerate(turns):
        tag = f"{IMAGE_TAG}\n" if number == 0 else ""
        result.append({"role": "user", "content": tag + turn.question})
        result.append({"role": "assistant", "content": turn.answer})
    return result
