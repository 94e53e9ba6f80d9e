"""Rows of a batch: many requests through few compiled programs.

A program is compiled for every shape. Prompts are padded to a multiple of 16 tokens, and requests run in
chunks of one size, so that shapes repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.flow_sampler import to_uint8
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.models import vae
from tuna_jax.models.logical_sharding import LogicalSharding, constrain, use_sharding
from tuna_jax.models.vae_tiles import TILE_ABOVE, tiling
from tuna_jax.sequence import Special, TokenSequence, stack

Seed = int | Sequence[int | tuple[int, int]]

MOST = 64  # Rows a chunk, at most.
_VISUAL_TOKENS = 8192  # Visual tokens a chunk, at most: 8 pictures of 512x512.
_WHOLE = (
    5  # Latent frames up to which the VAE takes a clip at once; longer ones go in chunks of time.
)


def rows_a_chunk(visual_tokens: int) -> int:
    """How many rows of that many visual tokens run at once: a power of two, at most `MOST`."""
    fitting = max(1, min(MOST, _VISUAL_TOKENS // max(visual_tokens, 1)))
    return 1 << (fitting.bit_length() - 1)


def in_chunks(
    function: Callable[[Any], np.ndarray], rows: Shaped[np.ndarray, "n ..."], most: int = MOST
) -> Shaped[np.ndarray, "n ..."]:
    """`function` over `most` rows at a time; a chunk is filled up with its own last row.

    What is alone in its call is filled up less: to a power of two, above 8 to a multiple of 8.
    """
    parts = []
    alone = 1 << (len(rows) - 1).bit_length() if len(rows) <= 8 else round_up(len(rows), 8)
    size = min(most, alone)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        parts.append(np.asarray(function(filled))[: len(part)])
    return np.concatenate(parts)


def round_up(length: int, multiple: int = 16) -> int:
    """The next multiple: few widths, so that few programs are compiled."""
    return -(-length // multiple) * multiple


def width_of(sequences: Sequence[TokenSequence]) -> int:
    """The padded width that fits all of them."""
    return round_up(max(len(sequence.tokens) for sequence in sequences))


def prefix_of(
    sequences: Sequence[TokenSequence],
    special: Special,
    latents: Float[Any, "b n t h w c"] | None = None,
    width: int | None = None,
) -> Prefix:
    """What generation starts from: sequences padded to one width, with their pictures' latents.

    Args:
      sequences: B of them, with at most N visual slots.
      special: gives the pad id.
      latents: clean latents of the slots; None if there are none.
      width: tokens a row; None takes what fits.
    """
    slots = 0 if latents is None else latents.shape[1]
    batch = stack(sequences, width or width_of(sequences), slots, special)
    tokens, lengths, spans = (jnp.asarray(batch[name]) for name in ("tokens", "lengths", "spans"))
    return Prefix(tokens, lengths, spans, None if latents is None else jnp.asarray(latents))


def keys(seed: Seed, count: int) -> Array:
    """A PRNG key for each of `count` rows.

    Args:
      seed: row i's key comes of (seed, i). Or a seed a row, whose key comes of (seed[i], 0) as if the row were alone;
        or a pair of seed and place.
      count: how many.

    Raises:
      ValueError: another number of seeds than rows.
    """
    if isinstance(seed, int):
        place = jnp.arange(count)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), place)
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} rows; give one number, or one for each")
    pairs = [(one, 0) if isinstance(one, int) else one for one in seed]
    return jnp.stack([jax.random.fold_in(jax.random.key(first), place) for first, place in pairs])


def noise(seed: Seed, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 `[count, *shape]`; row i depends on its key (`keys`) alone."""
    return np.asarray(
        jax.vmap(lambda key: jax.random.normal(key, shape))(keys(seed, count)), np.float32
    )


@functools.partial(jax.jit, static_argnames=("config", "sharding", "tile_above"))
def encode(
    config: TunaConfig,
    vae_params: Any,
    clips: UInt8[Any, "n frames height width 3"],
    sharding: LogicalSharding | None = None,
    tile_above: int = TILE_ABOVE,
) -> tuple[Float[Array, "n t h w c"], Float[Array, "n t h w c"]]:
    """Clips -> the posterior's normalised mean and standard deviation, float32; a picture is a clip of one frame.

    Frames of more than `tile_above` pixels go in tiles.
    """
    with use_sharding(sharding):
        clips = constrain(jnp.asarray(clips), "batch", None, None, None, None)
        return vae.posterior(config.vae, vae_params, clips, tile_above=tile_above)


@functools.partial(jax.jit, static_argnames=("config", "sharding", "tile_above"))
def decode(
    config: TunaConfig,
    vae_params: Any,
    latents: Float[Any, "n t h w c"],
    sharding: LogicalSharding | None = None,
    tile_above: int = TILE_ABOVE,
) -> UInt8[Array, "n frames height width 3"]:
    """Normalised latents -> clips; frames of more than `tile_above` pixels go in tiles."""
    params = vae.for_frames(config.vae, vae_params, latents.shape[1])
    chunked = latents.shape[1] > _WHOLE
    height, width = (side * config.vae.spatial_factor for side in latents.shape[2:4])
    tiles = tiling(height, width, tile_above)
    with use_sharding(sharding):
        latents = constrain(jnp.asarray(latents), "batch", None, None, None, None)
        return to_uint8(vae.decode(config.vae, params, latents, chunked=chunked, tiles=tiles))
