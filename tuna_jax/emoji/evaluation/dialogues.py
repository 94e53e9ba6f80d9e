"""Conversations about held-out scenes: every answer exact, with the model's own earlier answers before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tuna_jax.emoji.evaluation.images import SEED, Answered, Images, test_scenes
from tuna_jax.emoji.world.dialogues import DIALOGUE_KINDS, dialogue
from tuna_jax.emoji.world.rendering import render
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

History = Sequence[tuple[str, str]]
Converse = Callable[[Images, Sequence[str], Sequence[History]], Sequence[str]]
_SPLITS = ("test_single", "test_pairs", "test_counts")


def converse_scores(
    converse: Converse, count: int, *, seed: int = SEED, size: int = 64
) -> tuple[dict[str, Score], list[Answered]]:
    """Holds `count` conversations.

    Returns:
        Scores: `dialogue_accuracy` (all turns of a conversation exact), `dialogue_turn_accuracy` (of single turns), and
        `dialogue_KIND_accuracy`; and what was said.
    """
    by_split = [test_scenes(split, -(-count // len(_SPLITS)), seed, size) for split in _SPLITS]
    scenes = [scene for group in zip(*by_split, strict=True) for scene in group][:count]
    talks = [dialogue(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(scenes)]
    images = np.stack([render(scene) for scene in scenes])
    histories: list[list[tuple[str, str]]] = [[] for _ in talks]
    said: list[tuple[int, Answered]] = []
    for turn in range(max(map(len, talks))):
        going = [i for i, talk in enumerate(talks) if turn < len(talk)]
        asked = [talks[i][turn] for i in going]
        texts = converse(
            images[going], [item.question for item in asked], [histories[i] for i in going]
        )
        for i, item, text in zip(going, asked, texts, strict=True):
            before = " / ".join(question for question, _ in histories[i])
            shown = f"{before} / {item.question}" if before else item.question
            kind = f"dialogue: {item.kind}"
            said.append((i, Answered(images[i], kind, shown, item.answer, text)))
            histories[i].append((item.question, text.strip()))
    whole = [all(item.right for j, item in said if j == i) for i in range(len(talks))]
    chances: dict[str, float] = {}
    scores: dict[str, Score] = {}
    for kind in DIALOGUE_KINDS:
        of_kind = [item for _, item in said if item.kind == f"dialogue: {kind}"]
        if of_kind:
            chances[kind] = commonest_share([item.expected for item in of_kind])
            right = [item.right for item in of_kind]
            scores[f"dialogue_{kind}_accuracy"] = Score.of(right, chances[kind])
    turns = float(np.mean([chances[turn.kind] for talk in talks for turn in talk]))
    lucky = float(np.mean([np.prod([chances[turn.kind] for turn in talk]) for talk in talks]))
    return {
        "dialogue_accuracy": Score.of(whole, lucky),
        "dialogue_turn_accuracy": Score.of([item.right for _, item in said], turns),
        **scores,
    }, [item for _, item in said]
