"""Large frames through the VAE in overlapping tiles, in memory that one tile and the result decide.

Attention and the residual blocks beside it, at the latent's resolution, see the whole frame. What is around them
is local (norms are over channels), and that is where the memory goes. So a tile is wrong only near a border where
the frame goes on: there its convolutions met zeros. Tiles overlap; of an overlap each leaves out the quarter nearest
to its border, and in the half between the two are blended. With the shipped VAE, a picture of 1088x1088 decoded so
is 74 dB from the whole one, in a third of the memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TILE_ABOVE = 1024 * 1024
"""Pixels of a frame above which it goes in tiles."""


class Tiling(NamedTuple):
    """How frames are cut, in latent positions (16 pixels each).

    Attributes:
      most: of a tile, a side.
      overlap: of neighbours, at least; at most half a tile. With 52 a tiled result is the whole one: a pixel sees 12.25
        positions to each side on the decoder's way, and fewer on the encoder's.
    """

    most: int = 40
    overlap: int = 8


class Cover(NamedTuple):
    """Tiles of one size along an axis, in latent positions: where each starts, and the size."""

    starts: tuple[int, ...]
    size: int


def tiling(height: int, width: int, above: int = TILE_ABOVE) -> Tiling | None:
    """How to cut frames of so many pixels; None: they go whole."""
    return Tiling() if height * width > above else None


def cover(length: int, tiles: Tiling) -> Cover:
    """The fewest tiles, as small as they can then be.

    Raises:
      ValueError: an overlap of more than half a tile.
    """
    most, overlap = tiles
    if not 0 < 2 * overlap <= most:
        raise ValueError(f"tiles of {most} cannot overlap by {overlap}; at least 1, at most half")
    if length <= most:
        return Cover((0,), length)
    count = -(-(length - overlap) // (most - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    return Cover(tuple(i * (length - size) // (count - 1) for i in range(count)), size)


def weights(tiles: Cover, scale: int) -> Float[np.ndarray, "tiles extent"]:
    """What each tile counts at each of its positions, `scale` for a latent one; over all tiles they sum to 1."""
    extent = tiles.size * scale
    place = np.arange(extent) + 0.5
    found = np.ones((len(tiles.starts), extent), np.float32)
    for i, (one, following) in enumerate(itertools.pairwise(tiles.starts)):
        overlap = (one + tiles.size - following) * scale
        rising = np.clip(2 * place / overlap - 0.5, 0.0, 1.0)
        found[i + 1] *= rising
        found[i, extent - overlap :] *= 1 - rising[:overlap]
    return found


def in_tiles(
    function: Callable[[Array], Array],
    x: Float[Array, "b f h w c"],
    tiles: Tiling,
    given: int,
    made: int,
) -> Float[Array, "b t y x d"]:
    """`function`, which maps clips to clips, over tiles of x, one after another.

    Args:
      function: what is run on every tile; all have one shape.
      x: clips.
      tiles: how they are cut.
      given, made: positions of x, and of the result, a latent position.
    """
    down, across = (cover(side // given, tiles) for side in x.shape[2:4])
    shape = (*x.shape[:2], down.size * given, across.size * given, x.shape[4])

    def piece(top: Array, left: Array) -> Array:
        zero = jnp.int32(0)
        return jax.lax.dynamic_slice(x, (zero, zero, top * given, left * given, zero), shape)

    def add(canvas: Array, tile: tuple[Array, ...]) -> tuple[Array, None]:
        top, left, vertical, horizontal = tile
        part = function(piece(top, left)) * vertical[:, None, None] * horizontal[:, None]
        corner = (jnp.int32(0), jnp.int32(0), top * made, left * made, jnp.int32(0))
        before = jax.lax.dynamic_slice(canvas, corner, part.shape)
        return jax.lax.dynamic_update_slice(canvas, before + part, corner), None

    one = jax.eval_shape(lambda: function(piece(jnp.int32(0), jnp.int32(0))))
    sides = (side // given * made for side in x.shape[2:4])
    canvas = jnp.zeros((*one.shape[:2], *sides, one.shape[4]), jnp.float32)
    pairs = np.asarray(list(itertools.product(range(len(down.starts)), range(len(across.starts)))))
    rows, columns = pairs.T
    each = (
        jnp.asarray(np.asarray(down.starts, np.int32)[rows]),
        jnp.asarray(np.asarray(across.starts, np.int32)[columns]),
        jnp.asarray(weights(down, made)[rows]),
        jnp.asarray(weights(across, made)[columns]),
    )
    return jax.lax.scan(add, canvas, each)[0].astype(one.dtype)
