"""Renders scenes of the hard world: scene -> uint8 picture, and pictures by index for training a VAE."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.emoji.world.art import load_art
from tuna_jax.emoji.world.hard.nouns import COLOURS, NAMES, hard_noun, variants
from tuna_jax.emoji.world.hard.scenes import (
    GRID,
    SIZES,
    Group,
    HardScene,
    HardSceneSource,
    box_of_object,
)
from tuna_jax.emoji.world.rendering import Sprite, paste_sprite, premultiplied
from tuna_jax.emoji.world.scenes import GROUNDS, shade

_LUMINANCE = np.array([0.30, 0.59, 0.11], np.float32)
# A colour keeps this share of itself where the art is black, and gives way to white by this share where it is white.
_SHADOW, _HIGHLIGHT = 0.35, 0.6


def tinted(sprite: UInt8[np.ndarray, "h w 4"], colour: str) -> UInt8[np.ndarray, "h w 4"]:
    """The sprite in one colour of COLOURS: its mean luminance becomes the colour, darker and lighter parts stay so."""
    weight = sprite[..., 3].astype(np.float32)
    luminance = sprite[..., :3].astype(np.float32) @ _LUMINANCE
    mean = float((luminance * weight).sum() / max(weight.sum(), 1.0))
    darker = np.minimum(luminance / max(mean, 1.0), 1.0)[..., None]
    lighter = np.clip((luminance - mean) / max(255.0 - mean, 1.0), 0.0, 1.0)[..., None]
    rgb = np.array(COLOURS[colour], np.float32) * (_SHADOW + (1 - _SHADOW) * darker)
    rgb += (255 - rgb) * lighter * _HIGHLIGHT
    return np.concatenate([np.clip(rgb, 0, 255).astype(np.uint8), sprite[..., 3:]], axis=-1)


class HardArt:
    """Sprites by (name, colour), resized to any side in pixels with anti-aliasing; resized sprites are cached.

    Args:
        directory: the cache folder of the art; see `atomic_io.cache_directory`.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        sprites = load_art([hard_noun(name).official for name in NAMES], directory)
        self._sprites = dict(zip(NAMES, sprites, strict=True))
        self._resized: dict[tuple[str, str, int], Sprite] = {}

    def sprite(self, name: str, colour: str, side: int) -> Sprite:
        """One emoji at `side` pixels, as `rendering.Art.sprite` gives it.

        Raises:
            KeyError: an unknown name or colour.
        """
        key = (name, colour, side)
        if key not in self._resized:
            sprite = self._sprites[hard_noun(name).singular]
            if colour:
                sprite = tinted(sprite, colour)
            self._resized[key] = premultiplied(sprite, side)
        return self._resized[key]


@functools.lru_cache(maxsize=2)
def default_hard_art(directory: str | None = None) -> HardArt:
    """The art of the hard world, loaded once per process."""
    return HardArt(directory)


def render_hard(scene: HardScene, art: HardArt | None = None) -> UInt8[np.ndarray, "size size 3"]:
    """The image of a scene: uint8 RGB, `scene.size` pixels square. A pure function of the scene."""
    art = art or default_hard_art()
    canvas = np.empty((scene.size, scene.size, 3), np.uint8)
    canvas[:] = scene.rgb
    for group in scene.groups:
        for cell in group.cells:
            left, top, side = box_of_object(cell, group.size, scene.size)
            paste_sprite(canvas, art.sprite(group.name, group.colour, side), left, top)
    return canvas


class HardImages:
    """Images by index for training a VAE: random objects in most of the nine cells, more than a scene has.

    Objects are drawn from all (name, colour, size), also those that training of the model holds out: the VAE is part
    of the world, as the art is.

    Args:
        seed: of the images.
        size: side of an image in pixels.
        length: number of images.
    """

    def __init__(self, seed: int = 0, size: int = 96, *, length: int = 1_000_000):
        self.seed, self.size, self.length = seed, size, length
        self._variants, self._art = variants(), default_hard_art()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Float32[np.ndarray, "size size 3"]:
        """Image `index` as float32 in [-1, 1]."""
        return self.image(int(index)).astype(np.float32) / 127.5 - 1.0

    def image(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """Image `index` as uint8."""
        key = np.array([(3 << 40) + (self.seed & 0xFFFFFFFF), index], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        ground = tuple(GROUNDS)[int(random.integers(len(GROUNDS)))]
        groups = []
        for cell in range(GRID * GRID):
            if random.random() < 0.75:
                name, colour = self._variants[int(random.integers(len(self._variants)))]
                groups.append(Group(name, colour, SIZES[int(random.integers(2))], (cell,)))
        scene = HardScene("three", ground, shade(random, ground, 4), tuple(groups), self.size)
        return render_hard(scene, self._art)


def render_scenes(
    source: HardSceneSource, indices: Sequence[int]
) -> UInt8[np.ndarray, "n size size 3"]:
    """The images of some scenes of a source."""
    return np.stack([render_hard(source[index]) for index in indices])
