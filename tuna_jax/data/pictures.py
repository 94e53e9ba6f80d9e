"""Picture files to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError


def read_picture(path: str | Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of a file, scaled so that its short side fits and cropped to its middle.

    Transparency becomes white.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no picture that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            turned = ImageOps.exif_transpose(opened).convert("RGBA")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error
    ground = Image.new("RGBA", turned.size, (255, 255, 255, 255))
    opaque = Image.alpha_composite(ground, turned).convert("RGB")
    return np.asarray(ImageOps.fit(opaque, (size, size), Image.Resampling.LANCZOS), np.uint8)
