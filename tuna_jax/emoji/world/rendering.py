"""Renders scenes: sprites are resized once per size, then composed with integer arithmetic in NumPy."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from tuna_jax.emoji.world.art import all_names, load_art
from tuna_jax.emoji.world.scenes import NAMES, VOCABULARY, Scene, SceneSource

# The largest product is 255 * 255, which fits 16 bits, so composition is exact up to one rounding.
Sprite = tuple[UInt16[np.ndarray, "s s 3"], UInt16[np.ndarray, "s s 1"]]


class Art:
    """Sprites by name, resized to any side in pixels with anti-aliasing; resized sprites are cached.

    Args:
        names: demo nouns or official names.
        directory: the cache folder of the art; see `atomic_io.cache_directory`.
    """

    def __init__(
        self, names: Sequence[str] = NAMES, directory: str | os.PathLike[str] | None = None
    ):
        self.names = tuple(names)
        self._index = {name: i for i, name in enumerate(self.names)}
        self._sprites = load_art(self.names, directory)
        self._resized: dict[tuple[str, int], Sprite] = {}

    def sprite(self, name: str, size: int) -> Sprite:
        """One emoji at `size` pixels: (colour times alpha, at most 255 * 255; 255 - alpha)."""
        key = (name, size)
        if key not in self._resized:
            if name not in self._index:
                raise KeyError(f"{name!r} is not in this art; its names are {self.names}")
            self._resized[key] = premultiplied(self._sprites[self._index[name]], size)
        return self._resized[key]


@functools.lru_cache(maxsize=2)
def default_art(directory: str | None = None) -> Art:
    """The art of the demo's 64 nouns and of the 16 new ones, loaded once per process."""
    return Art(VOCABULARY["all"], directory)


def premultiplied(sprite: UInt8[np.ndarray, "h w 4"], size: int) -> Sprite:
    """Resizes with bicubic anti-aliasing; colour is weighted by alpha, so edges get no dark rim."""
    alpha = sprite[..., 3:].astype(np.float32) / 255
    planes = np.concatenate([sprite[..., :3] * alpha, alpha * 255], axis=-1)
    resized = [
        np.asarray(Image.fromarray(planes[..., i]).resize((size, size), Image.Resampling.BICUBIC))
        for i in range(4)
    ]
    alpha_small = np.rint(np.clip(resized[3], 0, 255))[..., None]
    colour = np.clip(np.stack(resized[:3], -1), 0, alpha_small)
    return np.rint(colour * 255).astype(np.uint16), (255 - alpha_small).astype(np.uint16)


def paste(
    canvas: UInt8[np.ndarray, "h w 3"], art: Art, name: str, left: int, top: int, size: int
) -> None:
    """Pastes one emoji onto the canvas in place; the box may extend beyond the canvas."""
    paste_sprite(canvas, art.sprite(name, size), left, top)


def paste_sprite(canvas: UInt8[np.ndarray, "h w 3"], sprite: Sprite, left: int, top: int) -> None:
    """Pastes a sprite onto the canvas in place; it may extend beyond the canvas."""
    colour, rest = sprite
    size = len(colour)
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
    if x0 >= x1 or y0 >= y1:
        return
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    under = canvas[y0:y1, x0:x1]
    canvas[y0:y1, x0:x1] = (colour[inside] + under * rest[inside] + 127) // 255


def render(scene: Scene, art: Art | None = None) -> UInt8[np.ndarray, "size size 3"]:
    """The image of a scene: uint8 RGB, `scene.size` pixels square. A pure function of the scene."""
    art = art or default_art()
    canvas = np.empty((scene.size, scene.size, 3), np.uint8)
    canvas[:] = scene.rgb
    for thing in scene.things:
        paste(canvas, art, thing.name, thing.left, thing.top, thing.size)
    return canvas


class SceneImages:
    """Images by index for training a VAE: scenes as the model sees them, and varied images.

    Scenes have every layout, with the frequencies of `SceneSource`. Varied images have one to six emoji of any size
    at any position, which may overlap and extend beyond the edge, on a ground of any colour that is plain or a
    gradient, so that the VAE learns more than the palette and the grid of places.

    Args:
        seed: of the images.
        size: side of an image in pixels, a multiple of 16.
        length: number of images.
        varied: share of varied images.
        names: the emoji of varied images: 'demo' for the 64 nouns, 'all' for every emoji except flags, or a list
            of official names.
        split: the split of the scenes.
        directory: the cache folder of the art.
    """

    def __init__(
        self,
        seed: int = 0,
        size: int = 64,
        *,
        length: int = 1_000_000,
        varied: float = 0.5,
        names: str | Sequence[str] = "demo",
        split: str = "train",
        directory: str | os.PathLike[str] | None = None,
    ):
        if not 0 <= varied <= 1:
            raise ValueError(f"varied is {varied}; it must be between 0 and 1")
        if isinstance(names, str):
            if names not in ("demo", "all"):
                raise ValueError(
                    f"names is {names!r}; it must be 'demo', 'all' or a list of emoji names"
                )
            names = NAMES if names == "demo" else all_names(directory)
        self.scenes = SceneSource(split, seed, size, length=length)
        self.seed, self.size, self.length, self.varied = seed, size, length, varied
        self._art = Art(NAMES, directory)
        self._varied_art = Art(names, directory)
        self.varied_names = self._varied_art.names

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"SceneImages(seed={self.seed}, size={self.size}, varied={self.varied})"

    def __getitem__(self, index: int) -> Float32[np.ndarray, "size size 3"]:
        """Image `index` as float32 in [-1, 1]."""
        return self.image(index).astype(np.float32) / 127.5 - 1.0

    def image(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """Image `index` as uint8."""
        index = int(index)
        scene = self.scenes[index]
        key = np.array([(1 << 40) + (self.seed & 0xFFFFFFFF), index], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        if random.random() >= self.varied:
            return render(scene, self._art)
        return self._varied_image(random)

    def _varied_image(self, random: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        size = self.size
        start, end = random.integers(0, 256, size=(2, 3))
        ramp = np.linspace(0, 1, size)
        kind = int(random.integers(3))
        weight = {
            0: np.zeros((size, size)),
            1: np.tile(ramp, (size, 1)),
            2: np.tile(ramp, (size, 1)).T,
        }
        canvas = (start + (end - start) * weight[kind][..., None]).astype(np.uint8)
        for _ in range(int(random.integers(1, 7))):
            # Only seven sizes, so that the cache of resized sprites stays small.
            side = size // 8 * int(random.integers(2, 9))
            left, top = random.integers(-side // 3, size - 2 * side // 3 + 1, size=2)
            name = self._varied_art.names[int(random.integers(len(self._varied_art.names)))]
            paste(canvas, self._varied_art, name, int(left), int(top), side)
        return canvas
