"""Evaluation of combinations: the objects of two pictures in one.

A result is right if the first picture's object is on the left, or at the top, and the second picture's on the other
side (according to both judges of `judges.py`), the ground has the first picture's colour, and nothing else is in the
image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from tuna_jax.emoji.evaluation.edits import nothing_else
from tuna_jax.emoji.evaluation.images import SEED, GeneratedScenes, Images, names_in_cells
from tuna_jax.emoji.evaluation.judges import JUDGES, ObjectJudge, judge_ground, pair_cells
from tuna_jax.emoji.world.combine import Combination, CombinationSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import RELATIONS
from tuna_jax.evaluation.metrics.accuracy import Score

Pairs = UInt8[np.ndarray, "n 2 size size 3"]
CombineImages = Callable[[Pairs, Sequence[str], int], Images]
CHANCE = 1 / (2 * len(RELATIONS))
"""Accuracy of an image with both objects in a random order and relation, on the right ground."""


@dataclasses.dataclass(frozen=True)
class CombinedImages:
    """Combinations of the test split, their instructions, and the model's results.

    `unnamed` says which instructions do not name the objects.
    """

    items: tuple[Combination, ...]
    instructions: tuple[str, ...]
    unnamed: tuple[bool, ...]
    sources: Pairs
    targets: Images
    results: Images

    @property
    def strips(self) -> UInt8[np.ndarray, "n size wide 3"]:
        """Both sources, the result and the true target of each item side by side."""
        gap = np.full((*self.targets.shape[:2], 4, 3), 255, np.uint8)
        first, second = self.sources[:, 0], self.sources[:, 1]
        parts = [first, gap, second, gap, self.results, gap, self.targets]
        return np.concatenate(parts, axis=2)


def test_items(indices: Sequence[int], seed: int = SEED, size: int = 64) -> CombinedImages:
    """These items of the test split, with the true targets as results; the instructions cycle through all phrasings."""
    source = CombinationSource("test", seed, size)
    items = tuple(source[i] for i in indices)
    pairs = [
        (item.instructions[i % len(item.instructions)], i % len(item.instructions) % 2 == 0)
        for i, item in zip(indices, items, strict=True)
    ]
    sources = np.stack([[render(scene) for scene in item.sources] for item in items])
    targets = np.stack([render(item.target) for item in items])
    texts, unnamed = zip(*pairs, strict=True)
    return CombinedImages(items, texts, unnamed, sources, targets, targets)


def combine_split(
    combine: CombineImages, count: int, seed: int = SEED, size: int = 64
) -> CombinedImages:
    """Makes `count` combinations with held-out targets.

    Raises:
        ValueError: `combine` returned another dtype or shape than the targets'.
    """
    items = test_items(range(count), seed, size)
    results = np.asarray(combine(items.sources, items.instructions, seed))
    if results.shape != items.targets.shape or results.dtype != np.uint8:
        raise ValueError(
            f"combine returned {results.dtype} of shape {results.shape}; it must be uint8 of {items.targets.shape}"
        )
    return dataclasses.replace(items, results=results)


def verdicts(combined: CombinedImages, judge: ObjectJudge) -> Bool[np.ndarray, " n"]:
    """Whether each result is right."""
    targets = tuple(item.target for item in combined.items)
    generated = GeneratedScenes(targets, combined.instructions, combined.results)
    seen = names_in_cells(judge, generated, [pair_cells(scene.relation) for scene in targets])
    objects = [
        all(seen[key][i] == list(scene.names) for key in JUDGES) for i, scene in enumerate(targets)
    ]
    grounds = judge_ground(combined.results)
    ground = [a == scene.ground for a, scene in zip(grounds, targets, strict=True)]
    return np.array(objects) & np.array(ground) & nothing_else(combined.results, targets)


def combine_scores(combined: CombinedImages, right: Bool[np.ndarray, " n"]) -> dict[str, Score]:
    """`combine_accuracy`, also by relation, and `combine_unnamed_accuracy` of instructions without the names."""
    relations = [item.target.relation for item in combined.items]
    by = {
        relation: right[[r == relation for r in relations]].tolist()
        for relation in RELATIONS
        if relation in relations
    }
    scores = {"combine_accuracy": Score.of(right.tolist(), CHANCE, by)}
    if any(combined.unnamed):
        unnamed = right[list(combined.unnamed)]
        scores["combine_unnamed_accuracy"] = Score.of(unnamed.tolist(), CHANCE)
    return scores
