"""Picture files to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError


def read_picture(
    path: str | Path, size: int | tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of a file, fitted to a size (`fit`).

    Args:
      path: the file.
      size: a square's side, or (height, width).

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no picture that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            return fit(opened, (size, size) if isinstance(size, int) else size)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error


def fit(picture: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as bytes of (height, width): scaled so that it covers them, cropped to its middle.

    Turned as its EXIF data says; transparency becomes white.
    """
    turned = ImageOps.exif_transpose(picture).convert("RGBA")
    ground = Image.new("RGBA", turned.size, (255, 255, 255, 255))
    opaque = Image.alpha_composite(ground, turned).convert("RGB")
    return np.asarray(ImageOps.fit(opaque, (size[1], size[0]), Image.Resampling.LANCZOS), np.uint8)
