"""The splits of the hard world: which combinations training never has, for worlds of any number of nouns and colours.

Whether a combination is held out is a hash of the combination itself, so it is held out in every world that has it.
A world of few nouns may have no held-out combination of a kind at all; `available_splits` lists the splits that it has.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from tuna_jax.emoji.world.hard.nouns import COLOURED_NAMES, COLOURS, NAMES
from tuna_jax.emoji.world.scenes import GROUNDS, hashed_share

SIZES = ("small", "large")
COUNTS = (2, 3, 4, 5)
LAYOUTS = ("single", "pair", "three", "count", "groups")
SPLITS: dict[str, tuple[str, ...]] = {
    "train": LAYOUTS,
    "test_single": ("single",),
    "test_colours": ("single",),
    "test_pairs": ("pair",),
    "test_bindings": ("pair",),
    "test_three": ("three",),
    "test_counts": ("count",),
}
HELD_OUT = {"colour": 0.10, "single": 0.15, "pair": 0.10, "count": 0.10}
# (name, ground) that never occur: the object has the ground's colour. All others are read back exactly.
INVISIBLE = frozenset({("shark", "grey")})
FEWEST = 4
"""The smallest number of nouns of each kind."""
_ART_NAMES = tuple(name for name in NAMES if name not in COLOURED_NAMES)


class Difficulty(NamedTuple):
    """How many different objects the world has.

    Attributes:
        nouns: number of coloured nouns, and as many with the colours of their art, the first of each; 0 takes all.
        colours: number of colours, the first of COLOURS.
    """

    nouns: int = 0
    colours: int = len(COLOURS)

    def check(self) -> None:
        """Raises ValueError unless the world has enough nouns and colours."""
        if self.nouns and not FEWEST <= self.nouns <= len(COLOURED_NAMES):
            raise ValueError(
                f"nouns is {self.nouns}; it must be 0 (all) or from {FEWEST} to {len(COLOURED_NAMES)}"
            )
        if not 2 <= self.colours <= len(COLOURS):
            raise ValueError(f"colours is {self.colours}; it must be from 2 to {len(COLOURS)}")

    @property
    def coloured(self) -> tuple[str, ...]:
        """The coloured nouns."""
        return COLOURED_NAMES[: self.nouns or None]

    @property
    def uncoloured(self) -> tuple[str, ...]:
        """The nouns with the colours of their art."""
        return _ART_NAMES[: self.nouns or None]

    @property
    def used_colours(self) -> tuple[str, ...]:
        """The colours."""
        return tuple(COLOURS)[: self.colours]


EVERYTHING = Difficulty()
"""All nouns and colours."""


@functools.cache
def is_held_out_colour(name: str, colour: str) -> bool:
    """Whether this (name, colour) never occurs in training; nouns with the colours of their art are not held out."""
    return bool(colour) and hashed_share("hard colour", name, colour) < HELD_OUT["colour"]


@functools.cache
def is_held_out_single(name: str, colour: str, size: str, ground: str) -> bool:
    """Whether this single object on this ground never occurs alone in training."""
    return hashed_share("hard single", name, colour, size, ground) < HELD_OUT["single"]


@functools.cache
def is_held_out_pair(one: str, other: str) -> bool:
    """Whether these two names never occur together in training; the order does not matter."""
    return hashed_share("hard pair", *sorted((one, other))) < HELD_OUT["pair"]


@functools.cache
def is_held_out_count(name: str, colour: str, count: int) -> bool:
    """Whether this number of these objects never occurs in training; single objects are not held out."""
    return count > 1 and hashed_share("hard count", name, colour, count) < HELD_OUT["count"]


@functools.cache
def has_scenes(split: str, difficulty: Difficulty = EVERYTHING) -> bool:
    """Whether a world has scenes of this split; it always has some of 'train'.

    Raises:
        KeyError: an unknown split.
    """
    layouts = SPLITS[split]
    if split == "train":
        return True
    coloured, colours = difficulty.coloured, difficulty.used_colours
    names = (*coloured, *difficulty.uncoloured)
    # The colours of each noun that training has.
    known = {
        name: [
            c for c in (colours if name in coloured else ("",)) if not is_held_out_colour(name, c)
        ]
        for name in names
    }
    if layouts == ("single",):
        combinations = (
            [(name, c) for name in coloured for c in colours if is_held_out_colour(name, c)]
            if split == "test_colours"
            else [(name, c) for name in names for c in known[name]]
        )
        wanted = split == "test_single"
        return any(
            is_held_out_single(name, c, size, ground) == wanted
            for name, c in combinations
            for size, ground in itertools.product(SIZES, GROUNDS)
            if (name, ground) not in INVISIBLE
        )
    if layouts == ("count",):
        return any(
            is_held_out_count(name, c, count)
            for name in names
            for c in known[name]
            for count in COUNTS
        )
    among = coloured if split == "test_bindings" else names
    return any(
        is_held_out_pair(one, other)
        and any(
            split != "test_bindings" or a != b
            for a, b in itertools.product(known[one], known[other])
        )
        for one, other in itertools.combinations(among, 2)
    )


def available_splits(
    difficulty: Difficulty = EVERYTHING, layouts: Sequence[str] = LAYOUTS
) -> tuple[str, ...]:
    """The test splits that a world has, of those whose layouts are all among `layouts`.

    A model that was trained on some layouts only is measured on the splits of these: `layouts` are the keys of
    `config.data.layouts` with a positive weight.
    """
    return tuple(
        split
        for split, own in SPLITS.items()
        if split != "train" and set(own) <= set(layouts) and has_scenes(split, difficulty)
    )
