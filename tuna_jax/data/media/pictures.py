"""Picture files to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright, values from 5 on lie on their side


def upright(opened: Image.Image) -> Image.Image:
    """A picture as RGB, turned as its EXIF says, on white where it is transparent."""
    # Pillow copies what is upright already: a fiftieth of a photograph's way into a batch.
    turned = (
        opened if opened.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(opened)
    )
    turned.load()  # its file may be closed then
    if turned.mode == "RGB" and "transparency" not in turned.info:
        return turned
    if turned.mode.startswith("I;16"):
        # Pillow clips 16-bit gray at 255; its high bytes are the picture.
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    layered = turned.convert("RGBA")
    ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layered).convert("RGB")


def read_picture(
    path: str | Path, size: int | tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of a file, fitted to a size (`fit`).

    Args:
      path: the file.
      size: a square's side, or (height, width).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a picture.
    """
    try:
        with Image.open(path) as opened:
            return fit(opened, (size, size) if isinstance(size, int) else size)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from error


def fit(picture: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as bytes of (height, width): `upright`, scaled so that it covers them, cropped to its middle."""
    covered = ImageOps.fit(upright(picture), (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(covered, np.uint8)
