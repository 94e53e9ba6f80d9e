"""Picture files to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError


def upright(opened: Image.Image) -> Image.Image:
    """A picture as RGB, turned as its EXIF says, on white where it is transparent."""
    turned = ImageOps.exif_transpose(opened)
    if turned.mode == "RGB" and "transparency" not in turned.info:
        return turned
    if turned.mode.startswith("I;16"):
        # Pillow clips 16-bit gray at 255; its high bytes are the picture.
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    layered = turned.convert("RGBA")
    ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layered).convert("RGB")


def read_picture(path: str | Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of a file, scaled so that its short side fits and cropped to its middle.

    Transparency becomes white.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no picture that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            opaque = upright(opened)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error
    return np.asarray(ImageOps.fit(opaque, (size, size), Image.Resampling.LANCZOS), np.uint8)
