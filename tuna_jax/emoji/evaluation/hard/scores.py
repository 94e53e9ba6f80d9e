"""Accuracies in the hard world: pictures of held-out combinations from captions, and answers about them.

The model is given as plain functions on uint8 pictures, so any front end is judged by the same code:

    generate(prompts, seeds)   -> uint8 pictures [n, size, size, 3]; picture i depends only on prompt i and seed i
    answer(images, questions)  -> a list of texts

The chance level of a score about pictures is that of a model that ignores its caption and gives a perfect picture of
another scene of the same kind: other scenes' true contents are judged by the same claims.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tuna_jax.emoji.evaluation.hard.items import (
    PROMPTS,
    SEED,
    TEST_SPLITS,
    Images,
    Prompted,
    questions_of_kind,
)
from tuna_jax.emoji.evaluation.hard.judge import HardJudge, Seen, is_right, seen_in, verdicts
from tuna_jax.emoji.evaluation.images import AnsweredQuestion
from tuna_jax.emoji.world.hard.captions import (
    KINDS,
    NUMBERS,
    Claims,
)
from tuna_jax.emoji.world.hard.nouns import NAMES
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import (
    EVERYTHING,
    Difficulty,
)
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

Generate = Callable[[Sequence[str], Sequence[int]], Images]
Answer = Callable[[Images, Sequence[str]], Sequence[str]]

GENERATION_SCORES = (
    "hard_full_accuracy",
    "hard_partial_accuracy",
    "hard_object_accuracy",
    "hard_binding_accuracy",
    "hard_unseen_colour_accuracy",
    "hard_size_accuracy",
    "hard_place_accuracy",
    "hard_relation_accuracy",
    "hard_count_accuracy",
    "hard_ground_accuracy",
)
"""Names of the scores about pictures, in the order of the report; the distributions' are in `distribution.py`."""
ANSWER_SCORES = {f"hard_{kind}_answer_accuracy": kind for kind in KINDS}
"""Name -> kind of question."""
_SHIFTS = 8


def generated(prompted: Prompted, generate: Generate, judge: HardJudge) -> Prompted:
    """The prompts with the model's pictures."""
    return prompted.with_images(generate(prompted.texts, prompted.seeds), judge)


def true_pictures(
    prompted: Prompted, judge: HardJudge, through: Callable[[Images], Images] | None = None
) -> Prompted:
    """The prompts with true renderings of their scenes, or with those after `through` (a VAE, a blur)."""
    images = np.stack([render_hard(scene, judge.art) for scene in prompted.scenes])
    return prompted.with_images(through(images) if through else images, judge)


Verdict = Callable[[Claims, Seen], "bool | None"]


def _score(
    parts: Sequence[Prompted],
    verdict: Verdict,
    *,
    splits: Sequence[str] = TEST_SPLITS,
    by: Callable[[str, Claims], str] | None = None,
) -> Score | None:
    """The score of a verdict over all pictures of some splits that it applies to; None if there are none."""
    right: list[bool] = []
    chance: list[float] = []
    groups: dict[str, list[bool]] = {}
    for part in parts:
        by_split = {s: [i for i, at in enumerate(part.splits) if at == s] for s in splits}
        for rows in by_split.values():
            contents = [seen_in(part.scenes[i]) for i in rows]
            for at, i in enumerate(rows):
                value = verdict(part.claims[i], part.seen[i])
                if value is None:
                    continue
                right.append(value)
                if by:
                    groups.setdefault(by(part.splits[i], part.claims[i]), []).append(value)
                others = range(1, min(_SHIFTS, len(rows) - 1) + 1)
                guesses = [
                    verdict(part.claims[i], contents[(at + shift) % len(rows)]) for shift in others
                ]
                chance.append(float(np.mean([bool(g) for g in guesses])) if guesses else 0.0)
    if not right:
        return None
    return Score.of(right, float(np.mean(chance)), groups)


def _aspect(name: str) -> Verdict:
    return lambda claims, seen: verdicts(claims, seen)[name]


def _all_aspects(*names: str) -> Verdict:
    def verdict(claims: Claims, seen: Seen) -> bool | None:
        found = verdicts(claims, seen)
        if any(found[name] is None for name in names):
            return None
        return all(found[name] for name in names)

    return verdict


class Metric(NamedTuple):
    """A verdict that applies to single pictures, and to which of them.

    Attributes:
        verdict: True, False, or None where the caption does not claim it.
        splits: of the scenes.
        kinds: of the prompts.
    """

    verdict: Verdict
    splits: tuple[str, ...] = TEST_SPLITS
    kinds: tuple[str, ...] = PROMPTS


METRICS: dict[str, Metric] = {
    "right": Metric(is_right),
    "object": Metric(_aspect("objects")),
    "binding": Metric(
        _all_aspects("objects", "colour", "size"), ("test_bindings",), kinds=("full",)
    ),
    "size": Metric(_aspect("size")),
    "place": Metric(_aspect("place")),
    "relation": Metric(_aspect("relation")),
    "count": Metric(_aspect("objects"), ("test_counts",)),
    "ground": Metric(_aspect("ground")),
}
"""The accuracies of GENERATION_SCORES for single pictures, for sweeps."""


def metric_values(prompted: Prompted) -> dict[str, list[float]]:
    """By name of METRICS, 1 or 0 for each picture; NaN where its caption does not claim it."""
    values: dict[str, list[float]] = {}
    rows = list(zip(prompted.splits, prompted.claims, prompted.seen, strict=True))
    for name, (verdict, splits, kinds) in METRICS.items():
        if prompted.kind in kinds:
            verdicts_of_rows = [verdict(c, s) if at in splits else None for at, c, s in rows]
            values[name] = [float("nan") if v is None else float(v) for v in verdicts_of_rows]
    return values


def metric_chances(prompted: Prompted) -> dict[str, float]:
    """By name of METRICS, the chance level over all prompts, which need no pictures; those that apply to none are
    left out."""
    truth = dataclasses.replace(prompted, seen=tuple(map(seen_in, prompted.scenes)))
    scores = {
        name: _score([truth], verdict, splits=splits)
        for name, (verdict, splits, kinds) in METRICS.items()
        if prompted.kind in kinds
    }
    return {name: score.chance for name, score in scores.items() if score is not None}


def generation_scores(parts: Sequence[Prompted]) -> dict[str, Score]:
    """Every score of GENERATION_SCORES that the pictures of one or more kinds of prompts allow."""
    of_kind = {part.kind: [part] for part in parts}
    both = [part for part in parts if part.kind in ("full", "partial")]

    def layout(split: str, claims: Claims) -> str:
        del claims
        return split.removeprefix("test_")

    def number(split: str, claims: Claims) -> str:
        del split
        return NUMBERS[claims.count]

    def relation(split: str, claims: Claims) -> str:
        del split
        return " and ".join(sorted(r.relation for r in claims.relations))

    found = {
        "hard_full_accuracy": _score(of_kind.get("full", []), is_right, by=layout),
        "hard_partial_accuracy": _score(of_kind.get("partial", []), is_right, by=layout),
        "hard_object_accuracy": _score(both, _aspect("objects"), by=layout),
        "hard_binding_accuracy": _score(
            of_kind.get("full", []),
            _all_aspects("objects", "colour", "size"),
            splits=("test_bindings",),
        ),
        "hard_unseen_colour_accuracy": _score(
            both, _all_aspects("objects", "colour"), splits=("test_colours",)
        ),
        "hard_size_accuracy": _score(both, _aspect("size")),
        "hard_place_accuracy": _score(both, _aspect("place")),
        "hard_relation_accuracy": _score(
            of_kind.get("relation", []), _all_aspects("relation"), by=relation
        ),
        "hard_count_accuracy": _score(both, _aspect("objects"), splits=("test_counts",), by=number),
        "hard_ground_accuracy": _score(both, _aspect("ground")),
    }
    return {name: score for name, score in found.items() if score is not None}


def answer_chance(kind: str, answers: Sequence[str]) -> float:
    """The share of the commonest of the expected answers, and at least that of a guessed name."""
    commonest = commonest_share(answers)
    return max(commonest, 1 / len(NAMES)) if kind in ("name", "relation") else commonest


def ask_hard(
    answer: Answer,
    kind: str,
    count: int,
    *,
    seed: int = SEED,
    size: int = 96,
    through: Callable[[Images], Images] | None = None,
    difficulty: Difficulty = EVERYTHING,
    splits: Sequence[str] = (),
) -> tuple[Score, list[AnsweredQuestion]]:
    """Asks one kind of question about renderings of held-out scenes; only exact answers are right.

    Args:
        answer: the model.
        kind: one of `captions.KINDS`.
        count: number of questions, of all splits that have them in turn.
        seed: of the scenes.
        size: side of the images in pixels.
        through: changes the images before they are shown, for example a VAE.
        difficulty: of the scenes.
        splits: see `items.chosen_splits`.

    Raises:
        KeyError: an unknown kind.
        ValueError: the number of answers differs from the number of questions, or splits without such questions.
    """
    matching = questions_of_kind(
        kind, count, seed=seed, size=size, difficulty=difficulty, splits=splits
    )
    chosen = [item for _, item in matching]
    images = np.stack([render_hard(scene) for scene, _ in matching])
    images = through(images) if through else images
    texts = list(answer(images, [item.question for item in chosen]))
    if len(texts) != len(chosen):
        raise ValueError(f"answer returned {len(texts)} texts for {len(chosen)} questions")
    answered = [
        AnsweredQuestion(image, kind, item.question, item.answer, text)
        for image, item, text in zip(images, chosen, texts, strict=True)
    ]
    chance = answer_chance(kind, [item.answer for item in chosen])
    return Score.of([item.right for item in answered], chance), answered
