"""Scenes of the emoji world, and the deterministic source that samples them.

A scene is one to four emoji on a plain ground, in one of four layouts:

    single   one object in the middle (large), or in one of the four corners
    pair     one object to the left of, or above, another one
    groups   as `pair`, with one or two of each kind, three or four in total
    count    two, three or four objects of one kind

Scene i of a source depends only on (seed, split, i), so a source needs no storage, and any host can
read any index. `rendering.py` renders scenes, and `captions.py` describes them.

Held-out combinations never occur in the split `train`, for any seed:

    about 15 % of the (name, ground, place) triples of `single`    -> `test_single` consists of them
    about 10 % of the unordered pairs of names, in any layout      -> `test_pairs` consists of them
    about 10 % of the (name, ground, count) triples of `count`     -> `test_counts` consists of them
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from tuna_jax.emoji.world.nouns import NEW_NOUNS, NOUNS

# Clearly different from each other, and paler or duller than the saturated colours of the art, so that an
# object stands out on each of them.
GROUNDS: dict[str, tuple[int, int, int]] = {
    "pink": (255, 200, 225),
    "orange": (255, 190, 125),
    "yellow": (255, 243, 160),
    "green": (175, 225, 150),
    "teal": (60, 170, 165),
    "blue": (125, 190, 245),
    "purple": (198, 176, 240),
    "grey": (110, 118, 128),
}
PLACES = ("middle", "top left", "top right", "bottom left", "bottom right")
COUNTS = (2, 3, 4)
RELATIONS = ("left", "above")
GROUP_COUNTS = ((1, 2), (2, 1), (2, 2))
LAYOUTS = ("single", "pair", "groups", "count")
NAMES = tuple(item.singular for item in NOUNS)
NEW_NAMES = tuple(item.singular for item in NEW_NOUNS)
VOCABULARY = {"demo": NAMES, "new": NEW_NAMES, "all": (*NAMES, *NEW_NAMES)}
"""The names that a source can take, by a word: those of all models, those that only an adapter learns, or both."""

SPLITS: dict[str, tuple[str, ...]] = {
    "train": LAYOUTS,
    "test_single": ("single",),
    "test_pairs": ("pair",),
    "test_counts": ("count",),
}
HELD_OUT = {"single": 0.15, "pair": 0.10, "count": 0.10}
DEFAULT_WEIGHTS = {"single": 0.40, "pair": 0.35, "groups": 0.10, "count": 0.15}

# A cell is (left, top, width, height) in 64ths of the image; an object stays inside its cell.
Cell = tuple[int, int, int, int]
WHOLE: Cell = (0, 0, 64, 64)
_QUARTERS: tuple[Cell, ...] = ((0, 0, 32, 32), (32, 0, 32, 32), (0, 32, 32, 32), (32, 32, 32, 32))
PLACE_CELLS: dict[str, Cell] = dict(zip(PLACES, (WHOLE, *_QUARTERS), strict=True))
_TOP_LEFT, _TOP_RIGHT, _BOTTOM_LEFT, _BOTTOM_RIGHT = _QUARTERS
COUNT_CELLS: dict[int, tuple[Cell, ...]] = {
    2: (_BOTTOM_LEFT, _BOTTOM_RIGHT),
    3: (_TOP_LEFT, _BOTTOM_LEFT, _BOTTOM_RIGHT),
    4: _QUARTERS,
}
# The two sides of a relation, for one and for two objects on that side.
SIDE_CELLS: dict[str, tuple[dict[int, tuple[Cell, ...]], dict[int, tuple[Cell, ...]]]] = {
    "left": (
        {1: (_BOTTOM_LEFT,), 2: (_TOP_LEFT, _BOTTOM_LEFT)},
        {1: (_BOTTOM_RIGHT,), 2: (_TOP_RIGHT, _BOTTOM_RIGHT)},
    ),
    "above": (
        {1: (_TOP_LEFT,), 2: (_TOP_LEFT, _TOP_RIGHT)},
        {1: (_BOTTOM_LEFT,), 2: (_BOTTOM_LEFT, _BOTTOM_RIGHT)},
    ),
}
# An object is in the middle of its cell and has one of two sizes. Each further size or shift would be one more image
# of each sprite for the VAE and the model to learn, and training time on two cores is short.
LARGE, SMALL = 48, 28


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object in an image: its name and its square box, in pixels."""

    name: str
    left: int
    top: int
    size: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """The full description of an image.

    Attributes:
        layout: one of LAYOUTS.
        ground: the name of the ground's colour, a key of GROUNDS.
        rgb: the ground's actual colour, which may deviate slightly from the palette.
        things: the objects, first group first.
        names: the name of each group: one for `single` and `count`, two for `pair` and `groups`. The
            first of two is the one on the left, or at the top.
        counts: number of objects of each group.
        place: one of PLACES for `single`, else ''.
        relation: for two groups, the position of the first relative to the second: 'left' or 'above', else ''.
        size: side of the image in pixels.
    """

    layout: str
    ground: str
    rgb: tuple[int, int, int]
    things: tuple[Thing, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    place: str
    relation: str
    size: int


def hashed_share(*parts: object) -> float:
    """A number in [0, 1) that is a hash of the parts, the same on every machine."""
    text = "|".join(map(str, ("tuna_jax emoji world 1", *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2.0**64


def split_number(split: str) -> int:
    """A 32-bit number that separates the random numbers of one split from those of another."""
    return int(hashed_share("split", split) * 2**32)


@runtime_checkable
class Indexed(Protocol):
    """A source whose items are random and accessed by index."""

    length: int
    seed: int
    stream: int


def frequencies(what: str, kinds: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """The relative frequency of every kind; a kind that is not named has 0.

    Raises:
      ValueError: a kind is unknown, a weight is negative, or no weight is positive.
    """
    if (
        set(weights) - set(kinds)
        or min(weights.values(), default=0) < 0
        or not any(weights.values())
    ):
        raise ValueError(
            f"weights of {what} are {dict(weights)}; the kinds are {', '.join(kinds)}, no weight may be negative, "
            "and at least one must be positive"
        )
    return {kind: float(weights.get(kind, 0.0)) for kind in kinds}


def item_generator(source: Indexed, index: int) -> np.random.Generator:
    """The random generator of an item; it depends only on the source's stream and seed, and on the index.

    Raises:
      IndexError: the index is out of range.
    """
    if not 0 <= index < source.length:
        raise IndexError(f"index {index} is out of range for {source!r} with {source.length} items")
    key = np.array([(source.stream << 32) ^ (source.seed & 0xFFFFFFFF), index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def is_held_out_single(name: str, ground: str, place: str) -> bool:
    """Whether this triple of a single-object scene never occurs in training."""
    return hashed_share("single", name, ground, place) < HELD_OUT["single"]


def is_held_out_pair(first: str, second: str) -> bool:
    """Whether these two names never occur together in training, in any order or layout."""
    return hashed_share("pair", *sorted((first, second))) < HELD_OUT["pair"]


def is_held_out_count(name: str, ground: str, count: int) -> bool:
    """Whether this triple of a counted scene never occurs in training."""
    return hashed_share("count", name, ground, count) < HELD_OUT["count"]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's combination is held out: false for all training scenes, true for all test scenes."""
    if scene.layout == "single":
        return is_held_out_single(scene.names[0], scene.ground, scene.place)
    if scene.layout == "count":
        return is_held_out_count(scene.names[0], scene.ground, scene.counts[0])
    return is_held_out_pair(scene.names[0], scene.names[1])


@functools.lru_cache(maxsize=8)
def _held_out_tables(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three tests above as tables: [name, ground, place], [name, ground, count], [name, name]."""
    single = [[[is_held_out_single(n, g, p) for p in PLACES] for g in GROUNDS] for n in names]
    count = [[[is_held_out_count(n, g, c) for c in COUNTS] for g in GROUNDS] for n in names]
    pair = np.zeros((len(names), len(names)), bool)
    for i, j in itertools.combinations(range(len(names)), 2):
        pair[i, j] = pair[j, i] = is_held_out_pair(names[i], names[j])
    return np.array(single), np.array(count), pair


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; the known ones are {', '.join(known)}")


def boxed(name: str, cell: Cell, large: bool, size: int) -> Thing:
    """An object in the middle of its cell, in an image of `size` pixels."""
    side = LARGE if large else SMALL
    left, top = (
        start + (extent - side) // 2 for start, extent in zip(cell[:2], cell[2:], strict=True)
    )
    left, top, side = (round(value * size / 64) for value in (left, top, side))
    return Thing(name, left, top, side)


def shade(random: np.random.Generator, ground: str, jitter: int) -> tuple[int, int, int]:
    """A ground's colour; each channel deviates from the palette by at most `jitter`."""
    shift = random.integers(-jitter, jitter + 1, size=3).tolist()
    red, green, blue = (
        min(max(value + moved, 0), 255) for value, moved in zip(GROUNDS[ground], shift, strict=True)
    )
    return red, green, blue


class SceneSource:
    """Scenes by index, for `grain.MapDataset.source` or a plain loop.

    Args:
        split: a key of SPLITS.
        seed: of the scenes; held-out combinations do not depend on it.
        size: side of the image in pixels, a multiple of 16.
        length: number of scenes; it does not change the scenes themselves.
        weights: relative frequency of each layout of the split; a layout that is not named has
            weight 0.
        middle: share of single objects that are in the middle, and large.
        names: the nouns of the objects.
        ground_jitter: largest deviation of each channel of the ground from the palette, in 255ths.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        size: int = 64,
        *,
        length: int = 1_000_000,
        weights: Mapping[str, float] | None = None,
        middle: float = 0.5,
        names: Sequence[str] = NAMES,
        ground_jitter: int = 4,
    ):
        _check_choice("split", split, tuple(SPLITS))
        weights = dict(DEFAULT_WEIGHTS if weights is None else weights)
        for layout in weights:
            _check_choice("layout in weights", layout, LAYOUTS)
        for name in names:
            _check_choice("name", name, VOCABULARY["all"])
        if size <= 0 or size % 16:
            raise ValueError(f"size is {size}; it must be a positive multiple of 16, such as 64")
        if not 0 <= middle <= 1:
            raise ValueError(f"middle is {middle}; it must be between 0 and 1")
        self.split, self.seed, self.size, self.length = split, seed, size, length
        self.middle, self.names, self.ground_jitter = middle, tuple(names), ground_jitter
        self.layouts = tuple(
            layout for layout in SPLITS[split] if split != "train" or weights.get(layout, 0) > 0
        )
        shares = np.array(
            [weights.get(layout, 0.0) if split == "train" else 1.0 for layout in self.layouts]
        )
        if not len(shares) or (shares < 0).any():
            raise ValueError(
                f"weights {weights} leave the split {split!r} without a layout; one of {SPLITS[split]} "
                f"requires a positive weight"
            )
        self.weights = {
            k: float(v) for k, v in zip(self.layouts, shares / shares.sum(), strict=True)
        }
        self._cumulative = np.cumsum(shares / shares.sum())
        self._look_up_held_out()
        self.stream = split_number(split)

    def _look_up_held_out(self) -> None:
        """Reads the tables of held-out combinations, and checks that every layout has a scene."""
        self._held_single, self._held_count, self._held_pair = _held_out_tables(self.names)
        tables = {
            "single": self._held_single,
            "count": self._held_count,
            "pair": self._held_pair[~np.eye(len(self.names), dtype=bool)],
        }
        tables["groups"] = tables["pair"]
        for layout in self.layouts:
            held_out = tables[layout]
            if not (held_out.any() if self.split != "train" else (~held_out).any()):
                raise ValueError(
                    f"with the {len(self.names)} names {list(self.names)} the split {self.split!r} has no scene "
                    f"of layout {layout!r}; more names are required"
                )

    def settings(self) -> dict[str, object]:
        """Everything that the scenes depend on, for the key of the latent cache."""
        return {
            "world": 3,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "weights": self.weights,
            "middle": self.middle,
            "names": list(self.names),
            "ground_jitter": self.ground_jitter,
        }

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"SceneSource({self.split!r}, seed={self.seed}, size={self.size})"

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`."""
        random = item_generator(self, index)
        layout = self.layouts[int(np.searchsorted(self._cumulative, random.random(), "right"))]
        held_out = self.split != "train"
        while (
            True
        ):  # Rejection keeps the remaining combinations uniform; it takes a dozen rounds at most.
            name, other = random.integers(len(self.names), size=2).tolist()
            ground = int(random.integers(len(GROUNDS)))
            if layout == "single":
                corner = random.random() >= self.middle
                place = int(random.integers(1, len(PLACES))) if corner else 0
                if self._held_single[name, ground, place] == held_out:
                    return self._single(random, self.names[name], ground, PLACES[place])
            elif layout == "count":
                count = int(random.integers(len(COUNTS)))
                if self._held_count[name, ground, count] == held_out:
                    return self._count(random, self.names[name], ground, COUNTS[count])
            elif name != other and self._held_pair[name, other] == held_out:
                names = (self.names[name], self.names[other])
                return self._related(random, layout, names, ground)

    def _scene(
        self,
        random: np.random.Generator,
        layout: str,
        ground: int,
        things: Sequence[Thing],
        names: tuple[str, ...],
        counts: tuple[int, ...],
        place: str = "",
        relation: str = "",
    ) -> Scene:
        name = tuple(GROUNDS)[ground]
        rgb = shade(random, name, self.ground_jitter)
        return Scene(
            layout,
            name,
            rgb,
            tuple(things),
            names,
            counts,
            place,
            relation,
            self.size,
        )

    def _single(self, random: np.random.Generator, name: str, ground: int, place: str) -> Scene:
        large = place == "middle"
        things = [boxed(name, PLACE_CELLS[place], large, self.size)]
        return self._scene(random, "single", ground, things, (name,), (1,), place=place)

    def _count(self, random: np.random.Generator, name: str, ground: int, count: int) -> Scene:
        things = [boxed(name, cell, False, self.size) for cell in COUNT_CELLS[count]]
        return self._scene(random, "count", ground, things, (name,), (count,))

    def _related(
        self, random: np.random.Generator, layout: str, names: tuple[str, str], ground: int
    ) -> Scene:
        relation = RELATIONS[int(random.integers(len(RELATIONS)))]
        counts = (1, 1)
        if layout == "groups":
            counts = GROUP_COUNTS[int(random.integers(len(GROUP_COUNTS)))]
        things = [
            boxed(name, cell, False, self.size)
            for name, count, sides in zip(names, counts, SIDE_CELLS[relation], strict=True)
            for cell in sides[count]
        ]
        return self._scene(random, layout, ground, things, names, counts, relation=relation)
