"""Scenes of the hard world, and the deterministic source that samples them.

A scene is one to five emoji on a plain ground, in cells of a grid of 3 x 3. Objects that share a name, a colour and a
size form a group; a scene has one to three groups, of different names, in one of five layouts:

    single   one object
    pair     two objects, in one row or one column in two thirds of the scenes
    three    three objects; in a third of the scenes in one line, in another third the second and the third are each
             in a row or column with the first
    count    two to five objects of one group
    groups   two groups, three to five objects in total

Every object is small or large. A noun of `nouns.COLOURED_NAMES` has one of six colours, any other the colours of its
art. Cells, grounds, sizes and colours are uniform: none of them can be guessed from the others.

Scene i of a source depends only on (seed, split, i). Combinations that never occur in the split `train`, for any seed:

    about 10 % of the (name, colour) pairs                 in any layout   -> every scene of `test_colours` has one
    about 15 % of the (name, colour, size, ground)         of `single`     -> `test_single`
    about 10 % of the unordered pairs of names             in any layout   -> `test_pairs`, `test_three`, and
                                                                              `test_bindings`: two colours
    about 10 % of the (name, colour, count) triples        in any layout   -> `test_counts`

Apart from what its own split is about, a test scene has only combinations of the split `train`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from tuna_jax.emoji.world.hard.held_out import (
    COUNTS,
    EVERYTHING,
    INVISIBLE,
    LAYOUTS,
    SIZES,
    SPLITS,
    Difficulty,
    available_splits,
    has_scenes,
    is_held_out_colour,
    is_held_out_count,
    is_held_out_pair,
    is_held_out_single,
)
from tuna_jax.emoji.world.hard.nouns import hard_noun
from tuna_jax.emoji.world.scenes import (
    GROUNDS,
    frequencies,
    item_generator,
    shade,
    split_number,
)

Value = TypeVar("Value")

GRID = 3
# Row by row.
PLACES = (
    "top left",
    "top middle",
    "top right",
    "middle left",
    "middle",
    "middle right",
    "bottom left",
    "bottom middle",
    "bottom right",
)
# Of 32ths of a cell's side, so that a cell of 32 pixels (an image of 96) has sprites of 20 and 28 pixels.
SHARES = {"small": 20, "large": 28}
MOST = 5
GROUP_COUNTS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2), (1, 4), (4, 1))
DEFAULT_WEIGHTS = {"single": 0.3, "pair": 0.3, "three": 0.15, "count": 0.15, "groups": 0.1}
# Share of the objects that have a noun with a colour, a quarter of all nouns.
COLOURED_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Group:
    """Objects that are alike.

    Attributes:
        name: a singular of `nouns.HARD_NOUNS`.
        colour: a key of COLOURS, or '' for the colours of the art.
        size: one of SIZES.
        cells: the number of each object's cell, row by row from the top left.
    """

    name: str
    colour: str
    size: str
    cells: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self.cells)


@dataclasses.dataclass(frozen=True)
class HardScene:
    """The full description of an image.

    Attributes:
        layout: one of LAYOUTS.
        ground: the name of the ground's colour, a key of `scenes.GROUNDS`.
        rgb: the ground's actual colour, which may deviate slightly from the palette.
        groups: the objects.
        size: side of the image in pixels.
    """

    layout: str
    ground: str
    rgb: tuple[int, int, int]
    groups: tuple[Group, ...]
    size: int

    @property
    def count(self) -> int:
        """Number of objects."""
        return sum(group.count for group in self.groups)


def row_and_column(cell: int) -> tuple[int, int]:
    """Row and column of a cell."""
    return divmod(cell, GRID)


def is_left_of(one: int, other: int) -> bool:
    """Whether a cell is in the same row as another one and to the left of it."""
    (row, column), (other_row, other_column) = row_and_column(one), row_and_column(other)
    return row == other_row and column < other_column


def is_above(one: int, other: int) -> bool:
    """Whether a cell is in the same column as another one and above it."""
    (row, column), (other_row, other_column) = row_and_column(one), row_and_column(other)
    return column == other_column and row < other_row


def is_between(one: int, first: int, last: int) -> bool:
    """Whether a cell is in one row or one column with two others, and between them."""
    return any(
        related(a, one) and related(one, b)
        for related in (is_left_of, is_above)
        for a, b in ((first, last), (last, first))
    )


# (relation, cell of the first, cell of the second) -> whether it holds; 'between' has three cells.
RELATIONS: dict[str, Callable[..., bool]] = {
    "left": is_left_of,
    "right": lambda one, other: is_left_of(other, one),
    "above": is_above,
    "below": lambda one, other: is_above(other, one),
    "between": is_between,
}


def side_of_cell(size: int) -> int:
    """Side of a cell in pixels, in an image of `size` pixels."""
    return size // GRID


def box_of_cell(cell: int, size: int) -> tuple[int, int, int]:
    """(left, top, side) of a cell in pixels; the grid is in the middle of the image."""
    row, column = row_and_column(cell)
    side = side_of_cell(size)
    margin = (size - GRID * side) // 2
    return margin + column * side, margin + row * side, side


def box_of_object(cell: int, object_size: str, size: int) -> tuple[int, int, int]:
    """(left, top, side) of an object in pixels: in the middle of its cell."""
    left, top, side = box_of_cell(cell, size)
    sprite = round(SHARES[object_size] * side / 32)
    return left + (side - sprite) // 2, top + (side - sprite) // 2, sprite


def held_out_kinds(scene: HardScene) -> set[str]:
    """Which of the keys of HELD_OUT keep the scene out of the split `train`; empty for a scene of that split."""
    groups, kinds = scene.groups, set()
    if any(is_held_out_colour(group.name, group.colour) for group in groups):
        kinds.add("colour")
    if scene.layout == "single" and is_held_out_single(
        groups[0].name, groups[0].colour, groups[0].size, scene.ground
    ):
        kinds.add("single")
    if any(is_held_out_pair(a.name, b.name) for a, b in itertools.combinations(groups, 2)):
        kinds.add("pair")
    if any(is_held_out_count(group.name, group.colour, group.count) for group in groups):
        kinds.add("count")
    return kinds


# What keeps the scenes of a split out of training.
_REASON: dict[str, set[str]] = {
    "train": set(),
    "test_single": {"single"},
    "test_colours": {"colour"},
    "test_pairs": {"pair"},
    "test_bindings": {"pair"},
    "test_three": {"pair"},
    "test_counts": {"count"},
}


class HardSceneSource:
    """Scenes by index: `source[i]` depends only on (seed, split, i) and the settings below.

    Args:
        split: 'train', or one of the test splits, whose scenes all have a combination that training never has.
        seed: of the scenes.
        size: side of an image in pixels, a multiple of 16 and at least 96.
        length: number of scenes; it does not change the scenes themselves.
        weights: relative frequency of each layout in the split `train`; a layout that is not named has weight 0.
        ground_jitter: largest deviation of each channel of the ground from the palette, in 255ths.
        difficulty: the nouns and colours to choose from.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 96,
        *,
        length: int = 1_000_000,
        weights: Mapping[str, float] | None = None,
        ground_jitter: int = 4,
        difficulty: Difficulty = EVERYTHING,
    ):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; the splits are {', '.join(SPLITS)}")
        difficulty.check()
        if not has_scenes(split, difficulty):
            raise ValueError(
                f"the split {split!r} has no scenes with nouns={difficulty.nouns} and colours={difficulty.colours}: "
                f"none of their combinations is held out; raise nouns, or name other splits of "
                f"{', '.join(available_splits(difficulty))}"
            )
        self.difficulty = difficulty
        self._coloured, self._uncoloured = difficulty.coloured, difficulty.uncoloured
        self._colours = difficulty.used_colours
        if size < 96 or size % 16:
            raise ValueError(f"size is {size}; it must be a multiple of 16 and at least 96")
        chosen = frequencies(
            "layouts", LAYOUTS, dict(DEFAULT_WEIGHTS if weights is None else weights)
        )
        self.split, self.seed, self.size, self.length = split, seed, size, length
        self.ground_jitter = ground_jitter
        self.layouts = SPLITS[split]
        shares = np.array([chosen[name] if split == "train" else 1.0 for name in self.layouts])
        shares /= shares.sum()
        self.weights = dict(zip(self.layouts, shares.tolist(), strict=True))
        self._cumulative = np.cumsum(shares)
        self.stream = split_number(f"hard {split}")

    def settings(self) -> dict[str, object]:
        """Everything that the scenes depend on, for the key of the latent cache."""
        return {
            "world": "hard 1",
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "weights": self.weights,
            "ground_jitter": self.ground_jitter,
            "difficulty": list(self.difficulty),
        }

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"HardSceneSource({self.split!r}, seed={self.seed}, size={self.size})"

    def __getitem__(self, index: int) -> HardScene:
        """Scene `index`."""
        random = item_generator(self, index)
        at = int(np.searchsorted(self._cumulative, random.random(), "right"))
        layout = self.layouts[min(at, len(self.layouts) - 1)]
        reason = _REASON[self.split]
        # Rejection keeps the remaining combinations uniform; one in ten scenes is held out.
        while True:
            scene = self._scene(random, layout)
            if held_out_kinds(scene) == reason and self._belongs(scene):
                return scene

    def _belongs(self, scene: HardScene) -> bool:
        """Whether all objects are visible, and that the scene has what its test split requires."""
        if any((group.name, scene.ground) in INVISIBLE for group in scene.groups):
            return False
        if self.split != "test_bindings":
            return True
        colours = [group.colour for group in scene.groups]
        return all(colours) and len(set(colours)) == len(colours)

    def _scene(self, random: np.random.Generator, layout: str) -> HardScene:
        if layout == "single":
            counts: tuple[int, ...] = (1,)
        elif layout == "pair":
            counts = (1, 1)
        elif layout == "three":
            counts = (1, 1, 1)
        elif layout == "count":
            counts = (_choose(random, COUNTS),)
        else:
            counts = _choose(random, GROUP_COUNTS)
        cells = iter(_cells(random, layout, sum(counts)))
        ground = _choose(random, tuple(GROUNDS))
        names: list[str] = []
        groups = []
        for count in counts:
            name = self._name(random, names)
            names.append(name)
            colour = _choose(random, self._colours) if hard_noun(name).coloured else ""
            own = tuple(itertools.islice(cells, count))
            groups.append(Group(name, colour, _choose(random, SIZES), own))
        rgb = shade(random, ground, self.ground_jitter)
        return HardScene(layout, ground, rgb, tuple(groups), self.size)

    def _name(self, random: np.random.Generator, taken: Sequence[str]) -> str:
        pool = self._coloured
        if self.split not in ("test_colours", "test_bindings"):
            pool = self._coloured if random.random() < COLOURED_SHARE else self._uncoloured
        while True:
            name = _choose(random, pool)
            if name not in taken:
                return name


def _choose(random: np.random.Generator, values: Sequence[Value]) -> Value:
    """One of the values, uniformly."""
    return values[int(random.integers(len(values)))]


def _cells(random: np.random.Generator, layout: str, count: int) -> list[int]:
    """Different cells; those of `pair` and `three` are in line in the shares that the module's text states."""
    cells = random.permutation(GRID * GRID)[:count].tolist()
    if layout == "pair" and random.random() < 2 / 3:
        cells = _partners(random, cells[0], 1)
    elif layout == "three":
        kind = int(random.integers(3))
        if kind == 0:
            line = _LINES[int(random.integers(len(_LINES)))]
            cells = [line[int(i)] for i in random.permutation(GRID)]
        elif kind == 1:
            cells = _partners(random, cells[0], 2)
    return cells


def _partners(random: np.random.Generator, cell: int, count: int) -> list[int]:
    """The cell, and `count` different ones, each in its row or in its column."""
    inline = [c for c in range(GRID * GRID) if c != cell and _in_line(c, cell)]
    return [cell, *(inline[int(i)] for i in random.permutation(len(inline))[:count])]


def _in_line(one: int, other: int) -> bool:
    (row, column), (other_row, other_column) = row_and_column(one), row_and_column(other)
    return row == other_row or column == other_column


_LINES = tuple(tuple(GRID * row + column for column in range(GRID)) for row in range(GRID)) + tuple(
    tuple(GRID * row + column for row in range(GRID)) for column in range(GRID)
)
