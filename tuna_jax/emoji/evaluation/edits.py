"""Evaluation of edits: whether the instruction was followed, and whether the rest of the image was kept.

An edit is right if every object of the target is in its cell (according to both judges of `judges.py`), the ground has
the target's colour, and nothing else is in the image: what was removed or moved away is gone. How well the rest was
kept is reported separately, as PSNR against the true target over the pixels in which true source and target agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from tuna_jax.emoji.evaluation.images import SEED, GeneratedScenes, Images, names_in_cells
from tuna_jax.emoji.evaluation.judges import JUDGES, ObjectJudge, judge_ground, pair_cells
from tuna_jax.emoji.world.edits import EDITS, Edit, EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, PLACE_CELLS, PLACES, Cell, Scene
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr

EditImages = Callable[[Images, Sequence[str], int], Images]
# Accuracy of an edit of the right kind with a random result that keeps everything else.
CHANCE = {
    "replace": 1 / (len(NAMES) - 1),
    "recolour": 1 / (len(GROUNDS) - 1),
    "move": 1 / (len(PLACES) - 1),
    "remove": 1 / 2,
}
# Share of the pixels outside the objects that may differ from the ground: soft edges stay below it, an object does not.
_LEFT_OVER = 0.03
_MARGIN = 3


@dataclasses.dataclass(frozen=True)
class EditedImages:
    """Edits of the test split, their instructions, and the model's results."""

    edits: tuple[Edit, ...]
    instructions: tuple[str, ...]
    sources: Images
    targets: Images
    results: Images

    @property
    def strips(self) -> UInt8[np.ndarray, "n size wide 3"]:
        """Source, result and true target of each edit side by side."""
        gap = np.full((*self.sources.shape[:2], 4, 3), 255, np.uint8)
        return np.concatenate([self.sources, gap, self.results, gap, self.targets], axis=2)


def edit_split(edit: EditImages, count: int, seed: int = SEED, size: int = 64) -> EditedImages:
    """Makes `count` edits with held-out targets; the instructions cycle through all phrasings.

    Raises:
        ValueError: `edit` returned another dtype or shape than its input images.
    """
    source = EditSource("test", seed, size)
    edits = tuple(source[i] for i in range(count))
    instructions = tuple(
        item.instructions[i % len(item.instructions)] for i, item in enumerate(edits)
    )
    before = np.stack([render(item.source) for item in edits])
    after = np.stack([render(item.target) for item in edits])
    results = np.asarray(edit(before, instructions, seed))
    if results.shape != before.shape or results.dtype != np.uint8:
        raise ValueError(
            f"edit returned {results.dtype} of shape {results.shape} for sources of shape {before.shape}; it must be "
            "uint8 of the same shape"
        )
    return EditedImages(edits, instructions, before, after, results)


def cells_of(scene: Scene) -> tuple[Cell, ...]:
    """The cell of each object of a scene with one or two objects."""
    if scene.layout == "single":
        return (PLACE_CELLS[scene.place],)
    return pair_cells(scene.relation)


def nothing_else(images: Images, scenes: Sequence[Scene]) -> Bool[np.ndarray, " n"]:
    """Whether each image is plain ground outside the objects of its scene."""
    plain = np.zeros(len(images), bool)
    for i, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        away = np.ones(image.shape[:2], bool)
        for thing in scene.things:
            rows = slice(max(thing.top - _MARGIN, 0), thing.top + thing.size + _MARGIN)
            columns = slice(max(thing.left - _MARGIN, 0), thing.left + thing.size + _MARGIN)
            away[rows, columns] = False
        # The image's own ground; its colour is judged separately.
        ground = np.median(image[away], axis=0)
        off = np.abs(image[away].astype(np.float32) - ground).max(-1) > 40
        plain[i] = off.mean() < _LEFT_OVER
    return plain


def verdicts(edited: EditedImages, judge: ObjectJudge) -> Bool[np.ndarray, " n"]:
    """Whether each edit is right."""
    targets = [edit.target for edit in edited.edits]
    generated = GeneratedScenes(tuple(targets), edited.instructions, edited.results)
    seen = names_in_cells(judge, generated, [cells_of(scene) for scene in targets])
    objects = np.array(
        [
            all(seen[key][i] == list(scene.names) for key in JUDGES)
            for i, scene in enumerate(targets)
        ]
    )
    grounds = judge_ground(edited.results)
    ground = np.array([a == scene.ground for a, scene in zip(grounds, targets, strict=True)])
    return objects & ground & nothing_else(edited.results, targets)


def untouched_db(edited: EditedImages) -> dict[str, float]:
    """PSNR in dB of the results over the pixels that an edit keeps, by kind of edit."""
    by_kind = {}
    for kind in EDITS:
        rows = [i for i, edit in enumerate(edited.edits) if edit.kind == kind]
        if rows:
            by_kind[kind] = _psnr(edited, rows)
    return by_kind


def _psnr(edited: EditedImages, rows: Sequence[int]) -> float:
    index = np.asarray(rows)
    same = (edited.sources[index] == edited.targets[index]).all(-1)
    return capped_psnr(edited.results[index][same], edited.targets[index][same])


def edit_scores(edited: EditedImages, right: Bool[np.ndarray, " n"]) -> dict[str, Score]:
    """`edit_accuracy` of all edits and `edit_KIND_accuracy` of each kind."""
    kinds = [edit.kind for edit in edited.edits]
    by = {kind: right[[k == kind for k in kinds]].tolist() for kind in EDITS if kind in kinds}
    chance = float(np.mean([CHANCE[kind] for kind in kinds])) if kinds else 0.0
    scores = {"edit_accuracy": Score.of(right.tolist(), chance, by)}
    for kind, part in by.items():
        scores[f"edit_{kind}_accuracy"] = Score.of(part, CHANCE[kind])
    return scores
