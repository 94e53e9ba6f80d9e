"""Two pictures of one object each, an instruction, and the picture with both objects.

The result has both objects, small, side by side or one above the other: the first picture's is on the left or at the
top. Its ground is the first picture's, to the shade. Half of the phrasings do not name the objects, so that only the
pictures say what they are.

Item i depends only on (seed, split, i). In the split `train` none of the three scenes is a held-out combination; in
`test` every result is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tuna_jax.emoji.world.edits import SPLITS, pair, single
from tuna_jax.emoji.world.scenes import (
    GROUNDS,
    NAMES,
    PLACES,
    RELATIONS,
    Scene,
    is_held_out,
    item_generator,
    shade,
    split_number,
)


@dataclasses.dataclass(frozen=True)
class Combination:
    """Two scenes of one object each, an instruction, and the scene with both.

    Attributes:
      sources: the two scenes.
      target: the scene with both objects, those of the first source first.
      instructions: all phrasings of the instruction; those with an even number do not name the objects.
    """

    sources: tuple[Scene, Scene]
    target: Scene
    instructions: tuple[str, ...]


def instructions(first: str, second: str, relation: str) -> tuple[str, ...]:
    """All phrasings; those with an even number do not name the objects."""
    here, there = {
        "left": ("on the left", "on the right"),
        "above": ("at the top", "at the bottom"),
    }[relation]
    onward = {"left": "to the left of", "above": "above"}[relation]
    return (
        f"put the objects {here} and {there}",
        f"put the {first} {onward} the {second}",
        f"two objects, {here} and {there}",
        f"the {first} {here} and the {second} {there}",
    )


class CombinationSource:
    """Combinations by index.

    Args:
        split: 'train' or 'test'.
        seed: of the items.
        size: side of the images in pixels, a multiple of 16.
        length: number of items.
        middle: share of the sources' objects that are in the middle, and large.
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
        middle: float = 0.5,
        names: Sequence[str] = NAMES,
        ground_jitter: int = 4,
    ):
        if split not in SPLITS:
            raise ValueError(
                f"unknown split of combinations {split!r}; the splits are {', '.join(SPLITS)}"
            )
        if not 0 <= middle <= 1:
            raise ValueError(f"middle is {middle}; it must be between 0 and 1")
        self.split, self.seed, self.size, self.length = split, seed, size, length
        self.middle, self.names, self.ground_jitter = middle, tuple(names), ground_jitter
        self.stream = split_number(f"combinations {split}")

    def settings(self) -> dict[str, object]:
        """Everything that the items depend on, for the key of the latent cache."""
        return {
            "combinations": 1,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "middle": self.middle,
            "names": list(self.names),
            "ground_jitter": self.ground_jitter,
        }

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"CombinationSource({self.split!r}, seed={self.seed}, size={self.size})"

    def __getitem__(self, index: int) -> Combination:
        """Item `index`."""
        random = item_generator(self, index)
        while True:  # Rejection keeps the remaining combinations uniform.
            made = self._make(random)
            if self.split == "test":
                if is_held_out(made.target):
                    return made
            elif not any(is_held_out(scene) for scene in (*made.sources, made.target)):
                return made

    def _make(self, random: np.random.Generator) -> Combination:
        first, second = (
            self.names[int(i)] for i in random.choice(len(self.names), size=2, replace=False)
        )
        source, other = self._source(random, first), self._source(random, second)
        relation = RELATIONS[int(random.integers(len(RELATIONS)))]
        target = pair((first, second), relation, source.ground, source.rgb, self.size)
        return Combination((source, other), target, instructions(first, second, relation))

    def _source(self, random: np.random.Generator, name: str) -> Scene:
        ground = tuple(GROUNDS)[int(random.integers(len(GROUNDS)))]
        rgb = shade(random, ground, self.ground_jitter)
        corner = random.random() >= self.middle
        place = PLACES[int(random.integers(1, len(PLACES)))] if corner else PLACES[0]
        return single(name, place, ground, rgb, self.size)
