"""Images as patches of pixels, for models without a VAE (model.md section 12).

Patches stand where other models have latents: `[..., h, w, C]` with `C = 3 patch^2`, the pixels of a patch row by row
with the three colours of a pixel together. Patches of a VAE's latents (`VAEConfig.latent_patch`) have the same order,
with the channels of a latent in place of the colours.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tuna_jax.config import PixelConfig


def patchify(
    pixels: Float[Array, "*b height width colours"], patch: int
) -> Float[Array, "*b h w c"]:
    """Images -> patches of `patch` x `patch` pixels."""
    *batch, height, width, colours = pixels.shape
    h, w = height // patch, width // patch
    x = pixels.reshape(*batch, h, patch, w, patch, colours)
    return jnp.moveaxis(x, -3, -4).reshape(*batch, h, w, patch * patch * colours)


def unpatchify(
    patches: Float[Array, "*b h w c"], patch: int
) -> Float[Array, "*b height width colours"]:
    """The inverse of `patchify`."""
    *batch, h, w, channels = patches.shape
    colours = channels // patch**2
    x = jnp.moveaxis(patches.reshape(*batch, h, w, patch, patch, colours), -3, -4)
    return x.reshape(*batch, h * patch, w * patch, colours)


def from_strips(strips: Float[Array, "*b h w c"], patch: int) -> Float[Array, "*b h w c"]:
    """Strips of the raster -> patches.

    Strip j is pixels `patch^2 j` to `patch^2 (j + 1) - 1` of the image read row by row: what the head's output at image
    token j is in the released pixel models.
    """
    *batch, h, w, _ = strips.shape
    return patchify(strips.reshape(*batch, h * patch, w * patch, 3), patch)


def from_uint8(config: PixelConfig, images: UInt8[Array, "*b 1 height width 3"]) -> Array:
    """uint8 images -> float32 patches `[*b, 1, h, w, C]` in [-1, 1]."""
    return patchify(images.astype(jnp.float32) / 127.5 - 1.0, config.patch)
