"""Edits of the emoji world: a scene, an instruction, and the resulting scene.

    replace    one or two objects; one of them becomes another object
    recolour   one or two objects; the ground takes another colour
    move       one object moves to another place (it is large in the middle and small in a corner)
    remove     two objects; one of them is removed

The part that an edit does not change is equal to the pixel in both images: the same boxes, and the same shade of the
ground unless it is recoloured. Edit i depends only on (seed, split, i). In the split `train` neither scene is a
held-out combination; in `test` every target is one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tuna_jax.emoji.world.captions import background, with_article
from tuna_jax.emoji.world.nouns import noun
from tuna_jax.emoji.world.scenes import (
    GROUNDS,
    NAMES,
    PLACE_CELLS,
    PLACES,
    RELATIONS,
    SIDE_CELLS,
    Cell,
    Scene,
    boxed,
    frequencies,
    is_held_out,
    item_generator,
    shade,
    split_number,
)

EDITS = ("replace", "recolour", "move", "remove")
SPLITS = ("train", "test")
DEFAULT_WEIGHTS = {"replace": 0.35, "recolour": 0.2, "move": 0.25, "remove": 0.2}
_PLACE_OF: dict[Cell, str] = {cell: place for place, cell in PLACE_CELLS.items()}


@dataclasses.dataclass(frozen=True)
class Edit:
    """A scene, an instruction, and the resulting scene.

    Attributes:
        kind: one of EDITS.
        source, target: the scenes before and after the edit.
        instructions: all phrasings of the instruction; the first is the usual one.
    """

    kind: str
    source: Scene
    target: Scene
    instructions: tuple[str, ...]


def single(name: str, place: str, ground: str, rgb: tuple[int, int, int], size: int) -> Scene:
    """One object at a place."""
    thing = boxed(name, PLACE_CELLS[place], place == "middle", size)
    return Scene("single", ground, rgb, (thing,), (name,), (1,), place, "", size)


def pair(
    names: tuple[str, str], relation: str, ground: str, rgb: tuple[int, int, int], size: int
) -> Scene:
    """Two objects; the first is left of or above the second."""
    things = tuple(
        boxed(name, sides[1][0], False, size)
        for name, sides in zip(names, SIDE_CELLS[relation], strict=True)
    )
    return Scene("pair", ground, rgb, things, names, (1, 1), "", relation, size)


class EditSource:
    """Edits by index.

    Args:
        split: 'train' or 'test'.
        seed: of the edits.
        size: side of the images in pixels, a multiple of 16.
        length: number of edits.
        weights: relative frequency of each kind; a kind that is not named has weight 0.
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
        names: Sequence[str] = NAMES,
        ground_jitter: int = 4,
    ):
        if split not in SPLITS:
            raise ValueError(
                f"unknown split of edits {split!r}; the splits are {', '.join(SPLITS)}"
            )
        self.split, self.seed, self.size, self.length = split, seed, size, length
        self.names, self.ground_jitter = tuple(names), ground_jitter
        self.weights = frequencies("edits", EDITS, DEFAULT_WEIGHTS if weights is None else weights)
        self._shares = np.array(list(self.weights.values())) / sum(self.weights.values())
        self.stream = split_number(f"edits {split}")

    def settings(self) -> dict[str, object]:
        """Everything that the edits depend on, for the key of the latent cache."""
        return {
            "edits": 1,
            "split": self.split,
            "seed": self.seed,
            "size": self.size,
            "weights": self.weights,
            "names": list(self.names),
            "ground_jitter": self.ground_jitter,
        }

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"EditSource({self.split!r}, seed={self.seed}, size={self.size})"

    def __getitem__(self, index: int) -> Edit:
        """Edit `index`."""
        random = item_generator(self, index)
        kind = EDITS[int(random.choice(len(EDITS), p=self._shares))]
        make = {
            "replace": self._replace,
            "recolour": self._recolour,
            "move": self._move,
            "remove": self._remove,
        }[kind]
        while True:  # Rejection keeps the remaining combinations uniform.
            source, target, instructions = make(random)
            if self.split == "train":
                if not (is_held_out(source) or is_held_out(target)):
                    return Edit(kind, source, target, instructions)
            elif is_held_out(target):
                return Edit(kind, source, target, instructions)

    def _names(self, random: np.random.Generator, count: int) -> list[str]:
        chosen = random.choice(len(self.names), size=count, replace=False)
        return [self.names[int(i)] for i in chosen]

    def _scene(self, random: np.random.Generator, pairs: bool) -> tuple[Scene, str]:
        """A scene of one or two objects, and a name that is not in it."""
        first, second, other = self._names(random, 3)
        ground = tuple(GROUNDS)[int(random.integers(len(GROUNDS)))]
        rgb = shade(random, ground, self.ground_jitter)
        if pairs:
            relation = RELATIONS[int(random.integers(len(RELATIONS)))]
            return pair((first, second), relation, ground, rgb, self.size), other
        place = PLACES[0] if random.random() < 0.5 else PLACES[int(random.integers(1, len(PLACES)))]
        return single(first, place, ground, rgb, self.size), other

    def _replace(self, random: np.random.Generator) -> tuple[Scene, Scene, tuple[str, ...]]:
        source, other = self._scene(random, bool(random.random() < 0.5))
        which = int(random.integers(len(source.names)))
        old = source.names[which]
        names = tuple(other if i == which else name for i, name in enumerate(source.names))
        things = tuple(
            dataclasses.replace(thing, name=name)
            for thing, name in zip(source.things, names, strict=True)
        )
        new = noun(other).one
        phrasings = (
            f"replace the {old} with {new}",
            f"change the {old} into {new}",
            f"put {new} in place of the {old}",
            f"make the {old} {new}",
        )
        return source, dataclasses.replace(source, names=names, things=things), phrasings

    def _recolour(self, random: np.random.Generator) -> tuple[Scene, Scene, tuple[str, ...]]:
        source, _ = self._scene(random, bool(random.random() < 0.5))
        others = [ground for ground in GROUNDS if ground != source.ground]
        ground = others[int(random.integers(len(others)))]
        rgb = shade(random, ground, self.ground_jitter)
        phrasings = (
            f"make the background {ground}",
            f"change the background to {ground}",
            f"put it on {background(ground)}",
            f"give the picture {with_article(ground)} background",
        )
        return source, dataclasses.replace(source, ground=ground, rgb=rgb), phrasings

    def _move(self, random: np.random.Generator) -> tuple[Scene, Scene, tuple[str, ...]]:
        source, _ = self._scene(random, False)
        others = [place for place in PLACES if place != source.place]
        place = others[int(random.integers(len(others)))]
        name = source.names[0]
        target = single(name, place, source.ground, source.rgb, self.size)
        phrasings = (
            f"move the {name} to the {place}",
            f"put the {name} in the {place}",
            f"the {name} should be in the {place}",
        )
        return source, target, phrasings

    def _remove(self, random: np.random.Generator) -> tuple[Scene, Scene, tuple[str, ...]]:
        source, _ = self._scene(random, True)
        gone = int(random.integers(2))
        name = source.names[gone]
        cell = SIDE_CELLS[source.relation][1 - gone][1][0]
        target = single(
            source.names[1 - gone], _PLACE_OF[cell], source.ground, source.rgb, self.size
        )
        phrasings = (
            f"remove the {name}",
            f"take the {name} away",
            f"delete the {name}",
            f"the same without the {name}",
        )
        return source, target, phrasings
