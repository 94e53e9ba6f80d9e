"""Batching of requests: many requests run through few compiled programs.

Each shape needs a compiled program of its own. Prompts are padded to a multiple of 16 tokens and requests run in chunks
of one size, so that shapes repeat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8, UInt32

from tuna_jax.config import TunaConfig
from tuna_jax.inference import option_checks
from tuna_jax.inference.generation.flow_sampler import to_uint8
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.models import latent_space, pixels
from tuna_jax.models.logical_sharding import LogicalSharding, constrain, use_sharding
from tuna_jax.models.vae_tiles import TILE_ABOVE, tiling
from tuna_jax.parallel import distributed, leader
from tuna_jax.sequence import Special, TokenSequence, stack
from tuna_jax.utils import seeds

Seed = int | Sequence[int | tuple[int, int]]
"""Whole numbers from 0 to 2**64 - 1; see `keys`."""

MAX_ROWS = 64
"""The largest number of rows per chunk."""
_MAX_VISUAL_TOKENS = 8192  # Per chunk: 8 images of 512x512 pixels.
_MAX_UNCHUNKED_FRAMES = 5  # The VAE decodes clips of more latent frames in chunks of time.


def rows_per_chunk(visual_tokens: int) -> int:
    """The number of rows, of `visual_tokens` each, that run at once: a power of two, at most `MAX_ROWS`."""
    limit = max(1, min(MAX_ROWS, _MAX_VISUAL_TOKENS // max(visual_tokens, 1)))
    return 1 << (limit.bit_length() - 1)


def in_chunks(
    function: Callable[[Any], np.ndarray],
    rows: Shaped[np.ndarray, "n ..."],
    max_rows: int = MAX_ROWS,
    parts: int = 1,
) -> Shaped[np.ndarray, "n ..."]:
    """Applies `function` to chunks of at most `max_rows` rows and concatenates the results.

    Every chunk has the same size; the last one is padded with copies of its last row, whose results are dropped. Fewer
    than `max_rows` rows are one chunk, padded to a power of two, or above 8 rows to a multiple of 8. Over a mesh that
    splits a batch into `parts`, the size is a multiple of it.
    """
    leader.agree()
    results = []
    padded_count = 1 << (len(rows) - 1).bit_length() if len(rows) <= 8 else round_up(len(rows), 8)
    size = round_up(min(max_rows, padded_count), parts)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = np.concatenate([chunk, np.repeat(chunk[-1:], size - len(chunk), axis=0)])
        results.append(distributed.to_host(function(padded))[: len(chunk)])
    return np.concatenate(results)


def round_up(length: int, multiple: int = 16) -> int:
    """The smallest multiple of `multiple` that is at least `length`. Few widths need few compiled programs."""
    return -(-length // multiple) * multiple


def width_of(sequences: Sequence[TokenSequence]) -> int:
    """The padded width, in tokens, that holds every sequence."""
    return round_up(max(len(sequence.tokens) for sequence in sequences))


def prefix_of(
    sequences: Sequence[TokenSequence],
    special: Special,
    latents: Float[Any, "b n t h w c"] | None = None,
    width: int | None = None,
    images: Float[Any, "b n t h w p"] | None = None,
) -> Prefix:
    """What generation starts from: sequences padded to one width, with the latents of their input images.

    Args:
      sequences: B token sequences with at most N visual slots each.
      special: special token ids; the pad id is used.
      latents: clean latents of the slots; None if there are none.
      width: tokens per row; None: `width_of(sequences)`.
      images: patches of their clean pixels, for designs that see pixels (`clean_patches`).
    """
    slots = 0 if latents is None else latents.shape[1]
    batch = stack(sequences, width or width_of(sequences), slots, special)
    tokens, lengths, spans = (jnp.asarray(batch[name]) for name in ("tokens", "lengths", "spans"))
    given = (None if array is None else jnp.asarray(array) for array in (latents, images))
    return Prefix(tokens, lengths, spans, *given)


def clean_patches(
    config: TunaConfig, clips: UInt8[Any, "n frames height width 3"]
) -> Float[Array, "n frames h w p"] | None:
    """Patches of clean pixels for a design that sees them; None for other designs.

    Raises:
      ValueError: a clip of several frames; the encoders of these designs see images.
    """
    if not config.sees_pixels:
        return None
    if clips.shape[1] != 1:
        raise ValueError(
            f"a clip of {clips.shape[1]} frames was given, and the design {config.design!r} sees the pixels of images; "
            f"give an image"
        )
    return pixels.from_uint8(config.image_patches, jnp.asarray(clips))


def keys(seed: Any, count: int) -> Array:
    """A PRNG key for each of `count` rows.

    Args:
      seed: a `Seed`. One seed: the key of row i is derived from (seed, i). Or a sequence with an entry per row: an
        integer s gives the key of (s, 0), which row 0 of a call with seed s has, and a pair (s, i) that of row i of
        such a call.
      count: number of rows.

    Raises:
      ValueError: the number of seeds differs from the number of rows, or a seed is not a whole number of 64 bits.
    """
    pairs = option_checks.seed_pairs(seed)
    if isinstance(pairs, int):
        indices = jnp.arange(count)
        return jax.vmap(jax.random.fold_in, (None, 0))(seeds.key(pairs), indices)
    if len(pairs) != count:
        raise ValueError(f"{len(pairs)} seeds for {count} rows; give one seed, or one per row")
    return jnp.stack([jax.random.fold_in(seeds.key(value), index) for value, index in pairs])


def key_data(seed: int, index: int) -> UInt32[np.ndarray, " words"]:
    """The data of the key of row `index` of a call with `seed` (`keys`), by one program for every seed.

    A server that has compiled everything beforehand uses it: `keys` runs an operation more for seeds above 2**32.
    """
    seed, index = seeds.check(seed), seeds.check_index(index, "index")
    return np.asarray(
        _key_data(np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32), np.uint32(index))
    )


@jax.jit
def _key_data(low: Array, high: Array, index: Array) -> Array:
    data = jax.random.key_data(jax.random.key(low)).at[..., ::2].set(high)
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(data), index))


def noise(seed: Any, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 `[count, *shape]`; row i depends only on its key (`keys`)."""
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
    """The mean and standard deviation of the VAE's posterior for clips, normalised, float32; of a model without a VAE,
    patches of pixels and zeros.

    An image is a clip of one frame. Frames of more than `tile_above` pixels are encoded in tiles.
    """
    with use_sharding(sharding):
        clips = constrain(jnp.asarray(clips), "batch", None, None, None, None)
        mean, std = latent_space.posterior(config.space, vae_params, clips, tile_above=tile_above)
        return mean, jnp.zeros_like(mean) if std is None else std


@functools.partial(jax.jit, static_argnames=("config", "sharding", "tile_above"))
def decode(
    config: TunaConfig,
    vae_params: Any,
    latents: Float[Any, "n t h w c"],
    sharding: LogicalSharding | None = None,
    tile_above: int = TILE_ABOVE,
) -> UInt8[Array, "n frames height width 3"]:
    """Clips from normalised latents; frames of more than `tile_above` pixels are decoded in tiles."""
    return decode_on_device(config, vae_params, latents, sharding, tile_above)[0]


def decode_checked(
    config: TunaConfig,
    vae_params: Any,
    latents: Float[Any, "n t h w c"],
    sharding: LogicalSharding | None = None,
    tile_above: int = TILE_ABOVE,
) -> tuple[UInt8[np.ndarray, "n frames height width 3"], Bool[np.ndarray, " n"]]:
    """`decode`, and whether the latents and the pixels of each row are finite: as uint8, NaN would be black."""
    clips, finite = decode_on_device(config, vae_params, latents, sharding, tile_above)
    return distributed.to_host(clips), distributed.to_host(finite)


def finite_rows(array: Float[np.ndarray, "n t h w c"]) -> Bool[np.ndarray, " n"]:
    """Whether all values of each row are finite."""
    return np.asarray(np.isfinite(array.reshape(len(array), -1)).all(-1))


@functools.partial(jax.jit, static_argnames=("config", "sharding", "tile_above"))
def decode_on_device(
    config: TunaConfig,
    vae_params: Any,
    latents: Float[Any, "n t h w c"],
    sharding: LogicalSharding | None,
    tile_above: int,
) -> tuple[UInt8[Array, "n frames height width 3"], Bool[Array, " n"]]:
    """`decode_checked` as arrays of the device."""
    chunked = latents.shape[1] > _MAX_UNCHUNKED_FRAMES
    height, width = (side * config.space.spatial_factor for side in latents.shape[2:4])
    tiles = tiling(height, width, tile_above)
    with use_sharding(sharding):
        latents = constrain(jnp.asarray(latents), "batch", None, None, None, None)
        decoded = latent_space.decode(
            config.space, vae_params, latents, chunked=chunked, tiles=tiles
        )
        axes = tuple(range(1, decoded.ndim))
        finite = jnp.isfinite(latents).all(axes) & jnp.isfinite(decoded).all(axes)
        return to_uint8(decoded), finite
