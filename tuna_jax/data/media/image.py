"""Pictures at the size that a batch wants: uint8 pixels, nothing normalised. Clips: video.py.

Every failure that is the file's fault is a `Fault` (invalid_examples.py); a failing disk is not.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import BFloat16, UInt8
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.pictures import ORIENTATION, upright

SMALLEST_SIDE = 16


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """Pixels of a picture."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture or clip whose latents were computed in advance (latent_records.py).

    Attributes:
        size: pixels, as they were when it was encoded.
        read: the posterior's mean and standard deviation, one after the other, in the units of normalised latents.
    """

    size: Size
    read: Callable[[], BFloat16[np.ndarray, "2 t h w c"]]


# A file, an encoded file's bytes, or pixels: uint8 [h, w, c] of a picture and [f, h, w, c] of a clip, c 1, 3 or 4.
Pixels = Path | bytes | UInt8[np.ndarray, "*extent"]
Medium = Pixels | Encoded


def called(medium: Pixels) -> str:
    """What messages call it."""
    return str(medium) if isinstance(medium, Path) else "what the row holds"


def open_medium(medium: Path | bytes) -> Any:
    """A file or bytes, as a binary file to be read.

    Raises:
        Fault: missing_file.
    """
    if isinstance(medium, bytes):
        return io.BytesIO(medium)
    try:
        return medium.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Fault("missing_file", f"{medium} is not there") from error


def check_size(medium: Pixels, size: Size, smallest: int) -> Size:
    """The size; Fault if a side is too small."""
    if min(size.height, size.width) < smallest:
        raise Fault(
            "tiny_image", f"{called(medium)} has {size} pixels; a side has at least {smallest}"
        )
    return size


def as_picture(array: UInt8[np.ndarray, "*extent"]) -> Image.Image:
    """Pixels as a picture of Pillow's; Fault if they are none."""
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise Fault(
            "corrupt_image",
            f"an array of shape {list(array.shape)} is no picture [h, w, 1, 3 or 4]",
        )
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def image_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE) -> Size:
    """A picture's size as one sees it (EXIF orientation applied), from its header alone.

    Raises:
        Fault: missing_file, corrupt_image (its header), or tiny_image.
    """
    if isinstance(medium, np.ndarray):
        picture = as_picture(medium)
        return check_size(medium, Size(picture.height, picture.width), smallest)
    with open_medium(medium) as file:
        try:
            with Image.open(file) as opened:
                width, height = opened.size
                # PNG may keep its EXIF after the pixels: reading that would decode them.
                turned = "exif" in opened.info and opened.getexif().get(ORIENTATION, 1) >= 5
        except Exception as error:  # Pillow's plugins raise almost anything on broken headers
            raise Fault("corrupt_image", f"{called(medium)}: {error}") from error
    size = Size(width, height) if turned else Size(height, width)
    return check_size(medium, size, smallest)


def fit(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB picture scaled (bicubic, antialiased) until it covers `size`, and cropped to its middle."""
    scale = min(image.width / size.width, image.height / size.height)
    width, height = size.width * scale, size.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    resized = image.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, np.uint8)


def read_image(
    medium: Pixels, size: Size, *, smallest: int = SMALLEST_SIDE
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture at a size: turned upright, transparency on white, scaled and cropped (`fit`).

    A JPEG far larger than wanted is decoded at a half, a quarter or an eighth, never below twice the size.

    Raises:
        Fault: missing_file, corrupt_image (anywhere), or tiny_image.
    """
    if isinstance(medium, np.ndarray):
        picture = as_picture(medium)
        check_size(medium, Size(picture.height, picture.width), smallest)
        return fit(upright(picture), size)
    with open_medium(medium) as file:
        content = file.read()  # in one go: later errors are about the content, not about the disk
    try:
        with Image.open(io.BytesIO(content)) as opened:
            check_size(medium, Size(opened.height, opened.width), smallest)
            side = 2 * max(size.height, size.width)  # either way up
            opened.draft("RGB", (side, side))
            image = upright(opened)
    except (Fault, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise Fault("corrupt_image", f"{called(medium)}: {error}") from error
    return fit(image, size)
