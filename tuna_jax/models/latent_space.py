"""Clips to latents and back, for every kind of latents: a VAE's (`models/vae.py`) or patches of pixels
(`models/pixels.py`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tuna_jax.config import PixelConfig, VAEConfig
from tuna_jax.models import pixels, vae
from tuna_jax.models.layers import Params
from tuna_jax.models.vae_tiles import TILE_ABOVE, Tiling

Latents = Float[Array, "n t h w c"]
Space = VAEConfig | PixelConfig


def shapes(space: Space) -> Params:
    """Shapes and dtypes of the parameters; {} for pixels, which need none."""
    return {} if isinstance(space, PixelConfig) else vae.shapes(space)


def posterior(
    space: Space,
    params: Params,
    clips: UInt8[Any, "n f height width 3"],
    dtype: Any = jnp.float32,
    tile_above: int = TILE_ABOVE,
) -> tuple[Latents, Latents | None]:
    """Mean and standard deviation of the latents of clips, float32; pixels are exact and have None as the latter.

    Arguments as for `vae.posterior`.
    """
    if isinstance(space, PixelConfig):
        return pixels.from_uint8(space, jnp.asarray(clips)), None
    return vae.posterior(space, params, clips, dtype, tile_above=tile_above)


def sample(
    space: Space,
    params: Params,
    clips: UInt8[Any, "n f height width 3"],
    key: jax.Array,
    dtype: Any = jnp.float32,
) -> Latents:
    """A sample of the posterior of clips, float32 (model.md section 1)."""
    mean, std = posterior(space, params, clips, dtype)
    return mean if std is None else sample_normal(mean, std, key)


def sample_normal(
    mean: Float[Array, "*extent"], std: Float[Array, "*extent"], key: jax.Array
) -> Float[Array, "*extent"]:
    """A sample of a normal distribution with independent values."""
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def decode(
    space: Space,
    params: Params,
    latents: Latents,
    *,
    chunked: bool = False,
    tiles: Tiling | None = None,
) -> Float[Array, "n f height width 3"]:
    """Latents -> pixels, not clamped. Arguments as for `vae.decode`; patches of pixels ignore both options."""
    if isinstance(space, PixelConfig):
        return pixels.unpatchify(latents, space.patch)
    params = vae.for_frames(space, params, latents.shape[1])
    return vae.decode(space, params, latents, chunked=chunked, tiles=tiles)
