"""Judges of images of the emoji world, none of them trained: which object, which ground, which place.

An object is judged by its nearest neighbour in a gallery: every name, rendered on the requested ground in
the middle of its cell and one pixel off it. There are two features, and an image must satisfy both:

    pixels   the colours, at 32 x 32. Lenient: a blob of the right colours can pass.
    edges    gradient orientations in 8 x 8 cells, each cell normalised by its neighbourhood (as in HOG,
             Dalal and Triggs 2005). Right colours with wrong shapes fail: strength and sign are discarded.

Both look at one cell of the image (the whole image for a large object), so they also judge the place: in an
empty cell the nearest neighbour is arbitrary, and right once in 64 times.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.emoji.world.rendering import Art, default_art, paste
from tuna_jax.emoji.world.scenes import (
    GROUNDS,
    LARGE,
    NAMES,
    PLACE_CELLS,
    SIDE_CELLS,
    SMALL,
    WHOLE,
    Cell,
)

JUDGES = ("pixels", "edges")
CROP = 32
_CELL = 4
_BINS = 9
# Gradients below this (of 255 per pixel) are noise, not edges.
_FLOOR = 8.0


def crop(
    images: UInt8[np.ndarray, "n size size 3"], cell: Cell
) -> Float32[np.ndarray, "n 32 32 3"]:
    """One cell of each image (in 64ths, see scenes.py), averaged down to 32 x 32, in 0..255."""
    size = images.shape[1]
    left, top, width, height = (round(value * size / 64) for value in cell)
    part = images[:, top : top + height, left : left + width].astype(np.float32)
    factor = width // CROP
    if factor < 1 or width != height or width % CROP:
        raise ValueError(
            f"a cell of {width} x {height} pixels in an image of {size} pixels cannot be averaged to {CROP}; "
            "the side of an image must be a multiple of 64 pixels"
        )
    if factor == 1:
        return part
    shifts = [(i, j) for i in range(factor) for j in range(factor)]
    total = np.zeros((len(images), CROP, CROP, 3), np.float32)
    for i, j in shifts:
        total += part[:, i::factor, j::factor]
    return total / len(shifts)


def edge_features(crops: Float32[np.ndarray, "n 32 32 3"]) -> Float32[np.ndarray, "n d"]:
    """Histograms of unsigned gradient orientation, contrast-normalised, of unit length.

    The crop is smoothed slightly; each pixel takes the channel with the strongest gradient; its vote is
    divided between the two nearest of nine orientations, and smoothing spreads it over the nearest cells.
    """
    # Small chunks keep the arrays in the processor's cache.
    chunks = [_edge_chunk(crops[i : i + 128]) for i in range(0, len(crops), 128)]
    return (
        np.concatenate(chunks)
        if chunks
        else np.zeros((0, (CROP // _CELL) ** 2 * _BINS), np.float32)
    )


def _edge_chunk(crops: Float32[np.ndarray, "n 32 32 3"]) -> Float32[np.ndarray, "n d"]:
    smooth = _blur(_blur(crops, axis=1), axis=2)
    padded = np.pad(smooth, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    strength = across**2 + down**2
    strongest = strength.argmax(-1)[..., None]
    across, down, strength = (
        np.take_along_axis(array, strongest, -1)[..., 0] for array in (across, down, strength)
    )
    magnitude = np.sqrt(strength)
    position = np.arctan2(down, across) * np.float32(_BINS / np.pi) % _BINS
    cells = CROP // _CELL
    histogram = np.empty((len(crops), cells, cells, _BINS), np.float32)
    pool = _pooling()
    for orientation in range(_BINS):
        away = np.abs(position - orientation)
        share = np.maximum(1 - np.minimum(away, _BINS - away), 0)
        histogram[..., orientation] = pool @ (share * magnitude) @ pool.T
    energy = (histogram**2).sum(-1)
    around = np.pad(energy, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbourhood = np.zeros_like(energy)
    for i in range(3):
        for j in range(3):
            neighbourhood += around[:, i : i + cells, j : j + cells]
    floor = (_FLOOR * _CELL) ** 2
    normalised = histogram / np.sqrt(neighbourhood + floor)[..., None]
    flat = np.minimum(normalised, 0.4).reshape(len(crops), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.maximum(length, 1e-6)


@functools.lru_cache(maxsize=1)
def _pooling() -> Float32[np.ndarray, "8 32"]:
    """A matrix that sums pixels into cells and spreads each cell over its neighbours, along one side."""
    sums = np.repeat(np.eye(CROP // _CELL, dtype=np.float32), _CELL, axis=1)
    return _blur(sums, axis=0)


def _blur(array: np.ndarray, axis: int) -> np.ndarray:
    """Filters with the weights 1/4, 1/2, 1/4 along an axis, with repeated edges."""
    width = [(0, 0)] * array.ndim
    width[axis] = (1, 1)
    padded = np.moveaxis(np.pad(array, width, mode="edge"), axis, 0)
    return np.moveaxis(padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4, 0, axis)


def _pixel_features(crops: Float32[np.ndarray, "n 32 32 3"]) -> Float32[np.ndarray, "n d"]:
    return (crops / 255).reshape(len(crops), -1)


_FEATURES = {"pixels": _pixel_features, "edges": edge_features}


class ObjectJudge:
    """Names the object in a cell of an image, with each of JUDGES.

    Args:
        art: the sprites; None takes the demo's.
        names: the names to choose from.
    """

    def __init__(self, art: Art | None = None, names: Sequence[str] = NAMES):
        self.art, self.names = art or default_art(), tuple(names)
        self._gallery = functools.lru_cache(maxsize=None)(self._build)

    def _build(self, ground: str, large: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features of every name on one ground, names in order, and each entry's squared length.

        In half precision all sixteen galleries take about 70 MB.
        """
        if ground not in GROUNDS:
            raise KeyError(
                f"{ground!r} is not a ground colour; the colours are {', '.join(GROUNDS)}"
            )
        side, size = (64, LARGE) if large else (32, SMALL)
        middle = (side - size) // 2
        boxes = [(middle + x, middle + y, size) for x in (-1, 0, 1) for y in (-1, 0, 1)]
        pictures = np.empty((len(self.names), len(boxes), side, side, 3), np.uint8)
        pictures[:] = GROUNDS[ground]
        for row, name in zip(pictures, self.names, strict=True):
            for picture, (left, top, size) in zip(row, boxes, strict=True):
                paste(picture, self.art, name, left, top, size)
        crops = pictures.reshape(-1, side, side, 3)
        crops = crop(crops, WHOLE) if large else crops.astype(np.float32)
        features = {judge: make(crops) for judge, make in _FEATURES.items()}
        return {
            judge: (array.astype(np.float16), np.einsum("nd,nd->n", array, array))
            for judge, array in features.items()
        }

    def __call__(
        self,
        images: UInt8[np.ndarray, "n size size 3"],
        cells: Sequence[Cell],
        grounds: Sequence[str],
    ) -> dict[str, list[str]]:
        """The name that each judge sees in `cells[i]` of `images[i]`, on the ground `grounds[i]`.

        Raises:
            ValueError: the numbers of images, cells and grounds differ.
            KeyError: an unknown ground.
        """
        if not len(images) == len(cells) == len(grounds):
            raise ValueError(
                f"{len(images)} images, {len(cells)} cells and {len(grounds)} grounds; their numbers must be equal"
            )
        seen = {judge: [""] * len(images) for judge in JUDGES}
        kinds = [(ground, cell == WHOLE) for ground, cell in zip(grounds, cells, strict=True)]
        for ground, large in sorted(set(kinds)):
            rows = [i for i, kind in enumerate(kinds) if kind == (ground, large)]
            crops = np.concatenate([crop(images[i : i + 1], cells[i]) for i in rows])
            gallery = self._gallery(ground, large)
            for judge, make in _FEATURES.items():
                entries, squares = gallery[judge]
                distance = squares - 2 * make(crops) @ entries.astype(np.float32).T
                for row, entry in zip(rows, distance.argmin(1), strict=True):
                    seen[judge][row] = self.names[entry * len(self.names) // len(entries)]
        return seen


def judge_ground(images: UInt8[np.ndarray, "n size size 3"]) -> list[str]:
    """The ground colour of each image: every pixel of its rim votes for the nearest colour of the palette.

    A vote is more robust than a mean, since in a full image objects touch much of the rim.
    """
    size = images.shape[1]
    rim = max(1, size // 32)
    mask = np.ones((size, size), bool)
    mask[rim:-rim, rim:-rim] = False
    palette = np.array(list(GROUNDS.values()), np.float32)
    pixels = images[:, mask].astype(np.float32)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    names = tuple(GROUNDS)
    return [names[np.bincount(votes, minlength=len(names)).argmax()] for votes in nearest]


def judge_place(images: UInt8[np.ndarray, "n size size 3"]) -> list[str]:
    """The place of the object in each image: the one nearest to the centroid of the foreground."""
    size = images.shape[1]
    palette = np.array([GROUNDS[name] for name in judge_ground(images)], np.float32)
    difference = np.abs(images - palette[:, None, None]).max(-1)
    weight = np.clip(difference - 25, 0, 60)
    total = np.maximum(weight.sum((1, 2)), 1e-6)
    along = (np.arange(size) + 0.5) / size * 64
    x, y = weight.sum(1) @ along / total, weight.sum(2) @ along / total
    centres = np.array([(c[0] + c[2] / 2, c[1] + c[3] / 2) for c in PLACE_CELLS.values()])
    nearest = ((np.stack([x, y], 1)[:, None] - centres) ** 2).sum(-1).argmin(1)
    return [tuple(PLACE_CELLS)[i] for i in nearest]


def pair_cells(relation: str) -> tuple[Cell, Cell]:
    """The cells of the first and the second of two single objects in a relation."""
    first, second = SIDE_CELLS[relation]
    return first[1][0], second[1][0]
