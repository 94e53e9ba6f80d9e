"""Editing, judged: does the picture show what was asked for, and is the rest as it was?

An edit is right if every object of the target is in its cell (both judges of `judges.py`), the ground is the target's,
and nothing else is left in the picture: what was removed, or moved away, is gone. How well the untouched part is
kept is told apart: its PSNR against the true target, over the pixels that the true source and target have in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from tuna_jax.emoji.evaluation.images import SEED, Drawn, Images, named
from tuna_jax.emoji.evaluation.judges import JUDGES, ObjectJudge, judge_ground, pair_cells
from tuna_jax.emoji.world.edits import EDITS, Edit, EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, PLACE_CELLS, PLACES, Cell, Scene
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr

ChangePictures = Callable[[Images, Sequence[str], int], Images]
# What a change of the asked kind to something at random would score, all else being kept.
CHANCE = {
    "replace": 1 / (len(NAMES) - 1),
    "recolour": 1 / (len(GROUNDS) - 1),
    "move": 1 / (len(PLACES) - 1),
    "remove": 1 / 2,
}
# Share of the pixels away from the objects that may differ from the ground: soft edges do, an object has more.
_LEFT_OVER = 0.03
_MARGIN = 3


@dataclasses.dataclass(frozen=True)
class Edited:
    """Edits of the test split, what was said of each, and what the model made of the sources."""

    edits: tuple[Edit, ...]
    instructions: tuple[str, ...]
    sources: Images
    targets: Images
    results: Images

    @property
    def strips(self) -> UInt8[np.ndarray, "n size wide 3"]:
        """Source, result and true target of each, side by side."""
        gap = np.full((*self.sources.shape[:2], 4, 3), 255, np.uint8)
        return np.concatenate([self.sources, gap, self.results, gap, self.targets], axis=2)


def change(edit: ChangePictures, count: int, seed: int = SEED, size: int = 64) -> Edited:
    """Has `count` edits made whose targets are held out; the instructions take turns through all phrasings."""
    source = EditSource("test", seed, size)
    edits = tuple(source[i] for i in range(count))
    said = tuple(item.instructions[i % len(item.instructions)] for i, item in enumerate(edits))
    before = np.stack([render(item.source) for item in edits])
    after = np.stack([render(item.target) for item in edits])
    results = np.asarray(edit(before, said, seed))
    if results.shape != before.shape or results.dtype != np.uint8:
        raise ValueError(
            f"edit returned {results.dtype} of shape {results.shape} for sources of {before.shape}; it must be "
            "uint8 of the same shape"
        )
    return Edited(edits, said, before, after, results)


def cells_of(scene: Scene) -> tuple[Cell, ...]:
    """The cell of each object of a scene of one object, or of two."""
    if scene.layout == "single":
        return (PLACE_CELLS[scene.place],)
    return pair_cells(scene.relation)


def nothing_else(images: Images, scenes: Sequence[Scene]) -> Bool[np.ndarray, " n"]:
    """Whether each picture is plain ground away from the objects that its scene has."""
    plain = np.zeros(len(images), bool)
    for i, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        away = np.ones(image.shape[:2], bool)
        for thing in scene.things:
            rows = slice(max(thing.top - _MARGIN, 0), thing.top + thing.size + _MARGIN)
            columns = slice(max(thing.left - _MARGIN, 0), thing.left + thing.size + _MARGIN)
            away[rows, columns] = False
        ground = np.median(
            image[away], axis=0
        )  # Its own, whatever that is: colour is judged apart.
        off = np.abs(image[away].astype(np.float32) - ground).max(-1) > 40
        plain[i] = off.mean() < _LEFT_OVER
    return plain


def verdicts(edited: Edited, judge: ObjectJudge) -> Bool[np.ndarray, " n"]:
    """Whether each edit is right."""
    targets = [edit.target for edit in edited.edits]
    drawn = Drawn(tuple(targets), edited.instructions, edited.results)
    seen = named(judge, drawn, [cells_of(scene) for scene in targets])
    objects = np.array(
        [
            all(seen[key][i] == list(scene.names) for key in JUDGES)
            for i, scene in enumerate(targets)
        ]
    )
    grounds = judge_ground(edited.results)
    ground = np.array([a == scene.ground for a, scene in zip(grounds, targets, strict=True)])
    return objects & ground & nothing_else(edited.results, targets)


def untouched_db(edited: Edited) -> dict[str, float]:
    """By kind of edit, PSNR in dB of the results over the pixels that an edit leaves as they are."""
    found = {}
    for kind in EDITS:
        rows = [i for i, edit in enumerate(edited.edits) if edit.kind == kind]
        if rows:
            found[kind] = _psnr(edited, rows)
    return found


def _psnr(edited: Edited, rows: Sequence[int]) -> float:
    some = np.asarray(rows)
    same = (edited.sources[some] == edited.targets[some]).all(-1)
    return capped_psnr(edited.results[some][same], edited.targets[some][same])


def edit_scores(edited: Edited, right: Bool[np.ndarray, " n"]) -> dict[str, Score]:
    """`edit_accuracy` of all, and of each kind `edit_KIND_accuracy`."""
    kinds = [edit.kind for edit in edited.edits]
    by = {kind: right[[k == kind for k in kinds]].tolist() for kind in EDITS if kind in kinds}
    chance = float(np.mean([CHANCE[kind] for kind in kinds])) if kinds else 0.0
    scores = {"edit_accuracy": Score.of(right.tolist(), chance, by)}
    for kind, part in by.items():
        scores[f"edit_{kind}_accuracy"] = Score.of(part, CHANCE[kind])
    return scores
