"""Reads a picture of the hard world back into objects, and compares them with what a caption claims.

Nothing is trained. Each of the nine cells is compared with a gallery of the renderer's own pictures: every name in
every colour and both sizes, on the picture's ground. There are two features, those of `judges.py`: colours, here at
16 x 16, and gradient orientations. A cell has an object if enough of its pixels differ from the ground. The nearest
colours name it, with its colour and its size; it is known if these colours are near enough, and if its orientations are
nearly as close to that name and size as to any other. An object that is not known satisfies no claim, but it counts.
So a blob or half an object is wrong, and so is anything that the caption does not mention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.emoji.evaluation.judges import CROP, edge_features, judge_ground
from tuna_jax.emoji.world.hard.captions import Claims
from tuna_jax.emoji.world.hard.nouns import variants
from tuna_jax.emoji.world.hard.rendering import HardArt, default_hard_art
from tuna_jax.emoji.world.hard.scenes import (
    GRID,
    RELATIONS,
    SHARES,
    SIZES,
    HardScene,
    box_of_cell,
    side_of_cell,
)
from tuna_jax.emoji.world.rendering import paste_sprite
from tuna_jax.emoji.world.scenes import GROUNDS

Images = UInt8[np.ndarray, "n size size 3"]
# A pixel belongs to an object if a channel is this far from the ground (of 255), and a cell has one if this share does.
_DIFFERENT, _OCCUPIED = 30, 0.025
# Largest squared distance to the nearest picture of the gallery, relative to that picture's distance from plain
# ground. Half of the reconstructions of the hard world's VAE are below 0.03, and 99 % below 0.23.
_NEAR = 0.35
# Largest squared distance of orientations to the object's own, relative to that to the nearest of all. Of the VAE's
# reconstructions, 94 % have 1 and 98 % are below 1.4; half of the other objects are beyond 3.
_SHAPED = 1.5


class SeenObject(NamedTuple):
    """An object in a cell; the name is '' if it is not known."""

    name: str
    colour: str
    size: str
    cell: int


class Seen(NamedTuple):
    """What a picture shows."""

    ground: str
    objects: tuple[SeenObject, ...]


def seen_in(scene: HardScene) -> Seen:
    """What a perfect judge sees in the rendering of a scene."""
    objects = [SeenObject(g.name, g.colour, g.size, cell) for g in scene.groups for cell in g.cells]
    return Seen(scene.ground, tuple(sorted(objects, key=lambda item: item.cell)))


class HardJudge:
    """Reads pictures; galleries are built when they are first used (a second for each ground).

    Args:
        art: the sprites; None takes those of the world.
    """

    def __init__(self, art: HardArt | None = None):
        self.art = art or default_hard_art()
        self.entries = tuple((*item, size) for size in SIZES for item in variants())
        shapes = {key: i for i, key in enumerate(dict.fromkeys((n, s) for n, _, s in self.entries))}
        self._shapes = np.array([shapes[name, size] for name, _, size in self.entries])
        self._gallery = functools.lru_cache(maxsize=None)(self._build)

    def cells(self, images: Images) -> Float32[np.ndarray, "n 9 32 32 3"]:
        """The cells of each image, resampled by area to 32 x 32."""
        size = images.shape[1]
        matrix = area_matrix(side_of_cell(size))
        result = np.empty((len(images), GRID * GRID, CROP, CROP, 3), np.float32)
        for cell in range(GRID * GRID):
            left, top, side = box_of_cell(cell, size)
            part = images[:, top : top + side, left : left + side].astype(np.float32)
            if side != CROP:
                part = np.einsum("ij,njkc,lk->nilc", matrix, part, matrix, optimize=True)
            result[:, cell] = part
        return result

    def __call__(self, images: Images) -> list[Seen]:
        """What each picture shows."""
        if not len(images):
            return []
        grounds = judge_ground(images)
        cells = self.cells(images)
        palette = np.array([own_ground(image) for image in images], np.float32)
        # Averages of 2 x 2 pixels, so that noise is not taken for objects.
        half = CROP // 2
        smooth = cells.reshape(*cells.shape[:2], half, 2, half, 2, 3).mean((3, 5))
        different = np.abs(smooth - palette[:, None, None, None]).max(-1) > _DIFFERENT
        occupied = different.mean((2, 3)) > _OCCUPIED
        objects: list[list[SeenObject]] = [[] for _ in images]
        for ground in sorted(set(grounds)):
            rows = np.array([i for i, name in enumerate(grounds) if name == ground])
            which, cell_numbers = np.nonzero(occupied[rows])
            if not len(which):
                continue
            found = self.objects(cells[rows[which], cell_numbers], ground, images.shape[1])
            for row, cell, (name, colour, size) in zip(
                rows[which].tolist(), cell_numbers.tolist(), found, strict=True
            ):
                objects[row].append(SeenObject(name, colour, size, cell))
        return [Seen(g, tuple(o)) for g, o in zip(grounds, objects, strict=True)]

    def objects(
        self, crops: Float32[np.ndarray, "n 32 32 3"], ground: str, size: int
    ) -> list[tuple[str, str, str]]:
        """(name, colour, size) of the object in each crop; all '' if it is not known."""
        return [
            self.entries[entry] if distance < _NEAR and shape < _SHAPED else ("", "", "")
            for entry, distance, shape in self.nearest(crops, ground, size)
        ]

    def nearest(
        self, crops: Float32[np.ndarray, "n 32 32 3"], ground: str, size: int
    ) -> list[tuple[int, float, float]]:
        """For each crop the nearest of `entries` by colours, its relative distance, and that of its orientations."""
        pixels, edges = colour_features(crops), edge_features(crops)
        known_pixels, known_edges, strength = self._gallery(ground, side_of_cell(size))
        by_pixels = _distances(pixels, known_pixels)
        by_edges = _distances(edges, known_edges)
        nearest = by_pixels.argmin(1)
        distance = by_pixels[np.arange(len(crops)), nearest] / strength[nearest]
        own = np.where(self._shapes[nearest][:, None] == self._shapes, by_edges, np.inf).min(1)
        shape = own / np.maximum(by_edges.min(1), 1e-6)
        shape = np.where(own < 1e-3, 1.0, shape)  # As good as equal.
        return list(zip(nearest.tolist(), distance.tolist(), shape.tolist(), strict=True))

    def _build(self, ground: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of every entry on one ground, and each entry's squared distance from plain ground."""
        pictures = np.empty((len(self.entries), side, side, 3), np.uint8)
        pictures[:] = GROUNDS[ground]
        for picture, (name, colour, size) in zip(pictures, self.entries, strict=True):
            sprite = round(SHARES[size] * side / 32)
            at = (side - sprite) // 2
            paste_sprite(picture, self.art.sprite(name, colour, sprite), at, at)
        matrix = area_matrix(side)
        crops = pictures.astype(np.float32)
        if side != CROP:
            crops = np.einsum("ij,njkc,lk->nilc", matrix, crops, matrix, optimize=True)
        crops = crops.astype(np.float32)
        plain = np.broadcast_to(np.array(GROUNDS[ground], np.float32), (1, CROP, CROP, 3))
        features = colour_features(crops)
        strength = ((features - colour_features(plain)) ** 2).sum(1)
        return features, edge_features(crops), strength


def colour_features(crops: Float32[np.ndarray, "n 32 32 3"]) -> Float32[np.ndarray, "n d"]:
    """The colours of each crop, averaged to 16 x 16, in 0..1."""
    small = crops.reshape(len(crops), CROP // 2, 2, CROP // 2, 2, 3).mean((2, 4))
    return (small / 255).reshape(len(crops), -1).astype(np.float32)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squared, 0.0)


def own_ground(image: UInt8[np.ndarray, "size size 3"]) -> np.ndarray:
    """The median colour of the rim."""
    rim = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    sides = np.concatenate([image[:, :2].reshape(-1, 3), image[:, -2:].reshape(-1, 3)])
    return np.median(np.concatenate([rim, sides]), axis=0)


@functools.cache
def area_matrix(side: int, to: int = CROP) -> Float32[np.ndarray, "to side"]:
    """The matrix that averages `side` pixels by area to `to`."""
    edges = np.arange(to + 1) * side / to
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * to / side).astype(np.float32)


ASPECTS = ("objects", "colour", "size", "place", "relation", "ground")
"""What is judged. 'objects': these names in these numbers, and nothing else."""


def verdicts(claims: Claims, seen: Seen) -> dict[str, bool | None]:
    """Whether each of ASPECTS is as claimed; None: the caption leaves it open.

    A colour, size, place or relation is right only if the objects that it belongs to are there.
    """
    by_name = {m.name: [o for o in seen.objects if o.name == m.name] for m in claims.mentions}
    numbers = all(len(by_name[m.name]) == m.count for m in claims.mentions)
    result: dict[str, bool | None] = {
        "objects": numbers and len(seen.objects) == claims.count,
        # Nouns with the colours of their art have '', and a colour that is left open is None.
        "colour": _all_of(
            [o.colour == m.colour for o in by_name[m.name]] for m in claims.mentions if m.colour
        ),
        "size": _all_of(
            [o.size == m.size for o in by_name[m.name]] for m in claims.mentions if m.size
        ),
        "place": _all_of(
            [o.cell == m.cell for o in by_name[m.name]]
            for m in claims.mentions
            if m.cell is not None
        ),
        "relation": _relations_hold(claims, by_name) if claims.relations else None,
        "ground": seen.ground == claims.ground if claims.ground else None,
    }
    return result


def is_right(claims: Claims, seen: Seen) -> bool:
    """Whether a picture is as its caption says: all of ASPECTS that are not open."""
    return all(value is not False for value in verdicts(claims, seen).values())


def _all_of(groups: Iterable[list[bool]]) -> bool | None:
    """Whether no group is empty or has a False; None without groups."""
    listed = list(groups)
    return all(group and all(group) for group in listed) if listed else None


def _relations_hold(claims: Claims, by_name: dict[str, list[SeenObject]]) -> bool:
    for relation, names in claims.relations:
        cells = [[o.cell for o in by_name[name]] for name in names]
        if any(len(cell) != 1 for cell in cells):
            return False
        holds: Callable[..., bool] = RELATIONS[relation]
        if not holds(*(cell[0] for cell in cells)):
            return False
    return True
