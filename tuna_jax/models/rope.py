"""Rotary positions: half-split 1-D for text, adjacent-pair 3-D for image tokens (model.md sections 6 and 7), and
DINOv3's half-split 2-D for patches.

All are `x cos + partner(x) sin`, with different partners and signs. A `Rotation` has one table for each, so that text
and image tokens share a sequence and every layer applies the same three multiplications.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tuna_jax.config import FlowHeadConfig
from tuna_jax.models.attention import Layout


class Rotation(NamedTuple):
    """Tables for one call's tokens, float32.

    Attributes:
      cos: multiplies the vector itself.
      half: multiplies the vector with its halves swapped; includes the signs; 0 where no half-split rotation applies.
      pair: multiplies the vector with adjacent entries swapped; includes the signs; None if no token needs it.
    """

    cos: Float[Array, "b s d"]
    half: Float[Array, "b s d"]
    pair: Float[Array, "b s d"] | None = None


def inverse_frequencies(head_dim: int, base: float) -> Float[np.ndarray, " half"]:
    """`base ** -(2 i / head_dim)`, float32, in radians per token."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (1.0 / np.float32(base) ** exponents).astype(np.float32)


def scaled_frequencies(config: FlowHeadConfig) -> Float[np.ndarray, " half"]:
    """The head's text frequencies with Llama-3 scaling: long wavelengths are slowed by `factor`, with a smooth ramp."""
    frequencies = inverse_frequencies(config.head_dim, config.text_rope_base)
    wavelength = 2 * math.pi / frequencies
    length = config.text_rope_original_length
    low, high = config.text_rope_low, config.text_rope_high
    slowed = frequencies / config.text_rope_factor
    smooth = (length / wavelength - low) / (high - low)
    ramp = (1 - smooth) * slowed + smooth * frequencies
    scaled = np.where(wavelength > length / low, slowed, frequencies)
    between = (wavelength <= length / low) & (wavelength >= length / high)
    return np.where(between, ramp, scaled).astype(np.float32)


def _half_tables(angles: Float[Array, "b s f"]) -> tuple[Array, Array]:
    """cos and signed sin for half-split rotation: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)


def text_rotation(
    position: Int[Array, "b s"], frequencies: Float[Array | np.ndarray, " f"]
) -> Rotation:
    """Half-split rotation at absolute positions, the same for every token (the language transformer)."""
    return Rotation(*_half_tables(position[:, :, None].astype(jnp.float32) * frequencies))


def patch_rotation(height: int, width: int, head_dim: int, base: float, before: int) -> Rotation:
    """DINOv3's half-split rotation of the patches of an image, behind tokens that are not rotated (arXiv 2508.10104).

    The coordinates of a patch are those of its centre in an image from -1 to 1 in height and in width, whatever its
    size. Half of the angles are of the row, half of the column. (In its own training DINOv3 shifts, stretches and
    scales the coordinates at random; this is not done here.)

    Args:
      height, width: grid of patches, row-major.
      head_dim: a multiple of 4.
      base: the frequencies are `2 pi base ** -(4 i / head_dim)`.
      before: number of tokens before the patches (CLS and registers).

    Returns:
      Tables `[1, before + height width, head_dim]`.
    """
    rows, columns = (
        (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) * np.float32(2)
        - np.float32(1)
        for size in (height, width)
    )
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    frequencies = inverse_frequencies(head_dim // 2, base)
    angles = (np.float32(2 * math.pi) * centres * frequencies).reshape(1, height * width, -1)
    return Rotation(*_half_tables(jnp.pad(jnp.asarray(angles), ((0, 0), (before, 0), (0, 0)))))


def visual_angles(
    index: Int[Array, "b s"], height: int, width: int, head_dim: int, base: float
) -> Float[Array, "b s f"]:
    """3-D RoPE angles of image tokens.

    Args:
      index: number of the image token in its span, from 0: frame-major, then row, then column.
      height, width: latent grid.
      head_dim: a multiple of 16; of its pairs 1/4 encode the frame, 3/8 the row and 3/8 the column.
      base: 1e4.
    """
    axes = (index // (height * width), index // width % height, index % width)
    sizes = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    return jnp.concatenate(
        [
            axis[:, :, None].astype(jnp.float32) * inverse_frequencies(size, base)
            for axis, size in zip(axes, sizes, strict=True)
        ],
        axis=-1,
    )


def flow_head_rotation(layout: Layout, config: FlowHeadConfig, height: int, width: int) -> Rotation:
    """The flow head's mixed rotation: 1-D on text, 3-D on image tokens, none on time tokens."""
    text = (layout.slot < 0)[:, :, None]
    image = layout.is_image[:, :, None]
    position = layout.position[:, :, None].astype(jnp.float32)
    text_cos, text_half = _half_tables(position * scaled_frequencies(config))
    angles = visual_angles(
        jnp.maximum(layout.within - 1, 0), height, width, config.head_dim, config.visual_rope_base
    )
    cos, sin = jnp.repeat(jnp.cos(angles), 2, axis=-1), jnp.repeat(jnp.sin(angles), 2, axis=-1)
    # (a, b) -> (a cos + b sin, -a sin + b cos): opposite to the usual direction.
    signs = np.tile(np.asarray([1.0, -1.0], np.float32), config.head_dim // 2)
    return Rotation(
        jnp.where(text, text_cos, jnp.where(image, cos, 1.0)),
        jnp.where(text, text_half, 0.0),
        jnp.where(image, sin * signs, 0.0),
    )


def rotate(x: Float[Array, "b s h d"], rotation: Rotation) -> Float[Array, "b s h d"]:
    """Applies a rotation to queries or keys; computed in float32, returned in the dtype of x."""
    y = x.astype(jnp.float32)
    d = x.shape[-1]
    out = y * rotation.cos[:, :, None]
    swapped = jnp.concatenate([y[..., d // 2 :], y[..., : d // 2]], -1)
    out = out + swapped * rotation.half[:, :, None]
    if rotation.pair is not None:
        pairs = y.reshape(*y.shape[:-1], d // 2, 2)[..., ::-1].reshape(y.shape)
        out = out + pairs * rotation.pair[:, :, None]
    return out.astype(x.dtype)
