"""Evaluation of dialogues about held-out scenes: each question follows the model's own earlier answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tuna_jax.emoji.evaluation.images import SEED, AnsweredQuestion, Images, test_scenes
from tuna_jax.emoji.world.dialogues import DIALOGUE_KINDS, dialogue
from tuna_jax.emoji.world.rendering import render
from tuna_jax.evaluation.metrics.accuracy import Score, commonest_share

History = Sequence[tuple[str, str]]
Converse = Callable[[Images, Sequence[str], Sequence[History]], Sequence[str]]
_SPLITS = ("test_single", "test_pairs", "test_counts")


def converse_scores(
    converse: Converse, count: int, *, seed: int = SEED, size: int = 64
) -> tuple[dict[str, Score], list[AnsweredQuestion]]:
    """Holds `count` conversations.

    Returns:
        The scores `dialogue_accuracy` (all turns of a conversation exact), `dialogue_turn_accuracy` (single turns) and
        `dialogue_KIND_accuracy`; and all questions with the model's answers.
    """
    by_split = [test_scenes(split, -(-count // len(_SPLITS)), seed, size) for split in _SPLITS]
    scenes = [scene for group in zip(*by_split, strict=True) for scene in group][:count]
    dialogues = [
        dialogue(scene, np.random.default_rng((seed, i))) for i, scene in enumerate(scenes)
    ]
    images = np.stack([render(scene) for scene in scenes])
    histories: list[list[tuple[str, str]]] = [[] for _ in dialogues]
    answered: list[tuple[int, AnsweredQuestion]] = []
    for turn in range(max(map(len, dialogues))):
        active = [i for i, planned in enumerate(dialogues) if turn < len(planned)]
        turns = [dialogues[i][turn] for i in active]
        texts = converse(
            images[active], [item.question for item in turns], [histories[i] for i in active]
        )
        for i, item, text in zip(active, turns, texts, strict=True):
            before = " / ".join(question for question, _ in histories[i])
            questions = f"{before} / {item.question}" if before else item.question
            kind = f"dialogue: {item.kind}"
            answered.append((i, AnsweredQuestion(images[i], kind, questions, item.answer, text)))
            histories[i].append((item.question, text.strip()))
    whole = [all(item.right for j, item in answered if j == i) for i in range(len(dialogues))]
    chances: dict[str, float] = {}
    scores: dict[str, Score] = {}
    for kind in DIALOGUE_KINDS:
        of_kind = [item for _, item in answered if item.kind == f"dialogue: {kind}"]
        if of_kind:
            chances[kind] = commonest_share([item.expected for item in of_kind])
            right = [item.right for item in of_kind]
            scores[f"dialogue_{kind}_accuracy"] = Score.of(right, chances[kind])
    turn_chance = float(np.mean([chances[turn.kind] for planned in dialogues for turn in planned]))
    dialogue_chance = float(
        np.mean([np.prod([chances[turn.kind] for turn in planned]) for planned in dialogues])
    )
    return {
        "dialogue_accuracy": Score.of(whole, dialogue_chance),
        "dialogue_turn_accuracy": Score.of([item.right for _, item in answered], turn_chance),
        **scores,
    }, [item for _, item in answered]
