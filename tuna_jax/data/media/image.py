"""Images at the size that a batch needs: uint8 RGB pixels, not normalised. Video: video.py.

Training, inference, editing, precomputed latents and evaluation all read images here, so that the same file gives the
same pixels everywhere. `to_rgb` holds every rule about orientation, colour and transparency, `fit` and `stretch` every
rule about scaling.

A failure that is the file's fault raises `Fault` (invalid_examples.py); a failing disk raises its own error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import BFloat16, UInt8
from PIL import Image, ImageOps

from tuna_jax.data.invalid_examples import Fault, fault_of
from tuna_jax.utils.regular_files import is_machine_fault, open_regular

SMALLEST_SIDE = 16
FILTER = Image.Resampling.BICUBIC
"""The filter of the released code. Pillow widens it when it shrinks an image, so that nothing aliases."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, values from 5 on exchange width and height


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """Height and width of an image in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image or video whose latents were computed in advance (sources/precomputed_latents.py).

    Attributes:
        size: height and width in pixels at which it was encoded.
        read: returns the posterior's mean and standard deviation, stacked, in the units of normalised latents.
    """

    size: Size
    read: Callable[[], BFloat16[np.ndarray, "2 t h w c"]]


# A file, the bytes of an encoded file, or pixels: uint8 [h, w, c] of an image, [f, h, w, c] of a video, c 1, 3 or 4.
Pixels = Path | bytes | UInt8[np.ndarray, "*extent"]
Medium = Pixels | Encoded


def describe(medium: Pixels) -> str:
    """How messages name it."""
    return str(medium) if isinstance(medium, Path) else "the image or video in the example"


def open_medium(medium: Path | bytes) -> Any:
    """Opens a file, or bytes, as a binary file.

    Raises:
        Fault: missing_file, or unreadable_file (no permission, a pipe, a device).
        OSError: the disk fails.
    """
    if isinstance(medium, bytes):
        return io.BytesIO(medium)
    try:
        return open_regular(medium)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Fault("missing_file", f"{medium} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have.
        if is_machine_fault(error):
            raise
        raise fault_of(error) from error


def check_size(medium: Pixels, size: Size, smallest: int) -> Size:
    """Returns the size; raises Fault (tiny_image) if a side is shorter than `smallest` pixels."""
    if min(size.height, size.width) < smallest:
        raise Fault(
            "tiny_image",
            f"{describe(medium)} has {size} pixels; each side needs at least {smallest}",
        )
    return size


def from_array(array: UInt8[np.ndarray, "*extent"]) -> Image.Image:
    """Pixels as a Pillow image; Fault (corrupt_image) if the shape is not [h, w, 1, 3 or 4]."""
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise Fault(
            "corrupt_image",
            f"an array of shape {list(array.shape)} is not an image [h, w, 1, 3 or 4]",
        )
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def upright_size(opened: Image.Image) -> Size:
    """The size after EXIF orientation is applied. Reads the header only."""
    # PNG may keep its EXIF after the pixels, and Pillow would decode them to look for it. TIFF is upright when opened.
    swapped = "exif" in opened.info and opened.getexif().get(_ORIENTATION, 1) >= 5
    return Size(opened.width, opened.height) if swapped else Size(opened.height, opened.width)


def image_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE) -> Size:
    """An image's size after EXIF orientation is applied, from its header only.

    Raises:
        Fault: missing_file, corrupt_image (of the header), or tiny_image.
    """
    if isinstance(medium, np.ndarray):
        image = from_array(medium)
        return check_size(medium, Size(image.height, image.width), smallest)
    with open_medium(medium) as file:
        try:
            with Image.open(file) as opened:
                size = upright_size(opened)
        except Exception as error:  # Pillow's plugins raise almost anything on broken headers.
            raise Fault("corrupt_image", f"{describe(medium)}: {error}") from error
    return check_size(medium, size, smallest)


def to_rgb(opened: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: EXIF orientation applied, transparent pixels on white, 16-bit grey scaled.

    The image is decoded, so its file may be closed afterwards.
    """
    # exif_transpose copies an image that is already upright, which takes 2 % of the time to load a photograph.
    oriented = opened
    if opened.getexif().get(_ORIENTATION, 1) != 1:
        oriented = ImageOps.exif_transpose(opened)
    oriented.load()
    if oriented.mode == "RGB" and "transparency" not in oriented.info:
        return oriented
    if oriented.mode == "I" or oriented.mode.startswith("I;16"):
        oriented = _eight_bits(oriented)
    layer = oriented.convert("RGBA")
    background = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def _eight_bits(grey: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey with alpha. Pillow's own conversion clips everything above 255 to white.

    The high byte is kept, as Pillow does for 16-bit RGB. Mode "I" has 32 bits, but decoders (PGM, older PNG) fill 16.
    """
    values = np.asarray(grey).astype(np.int64)
    alpha = np.full(values.shape, 255, np.uint8)
    if isinstance(grey.info.get("transparency"), int):
        alpha[values == grey.info["transparency"]] = 0
    luminance = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(luminance), Image.fromarray(alpha)])


def fit(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image scaled until it covers `size`, and cropped to its centre."""
    scale = min(image.width / size.width, image.height / size.height)
    width, height = size.width * scale, size.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((size.width, size.height), FILTER, box=box), np.uint8)


def stretch(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image scaled to `size` without a crop; its aspect ratio may change."""
    return np.asarray(image.resize((size.width, size.height), FILTER), np.uint8)


def read_image(
    medium: Pixels, size: Size, *, smallest: int = SMALLEST_SIDE
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB (`to_rgb`), scaled and cropped to a size (`fit`).

    A JPEG that is much larger is decoded at 1/2, 1/4 or 1/8 of its size, but never below twice the size needed.

    Args:
        medium: the file, its bytes, or pixels.
        size: of the result.
        smallest: the shortest side, in pixels, of a usable image.

    Raises:
        Fault: missing_file, corrupt_image, or tiny_image.
    """
    if isinstance(medium, np.ndarray):
        image = from_array(medium)
        check_size(medium, Size(image.height, image.width), smallest)
        return fit(to_rgb(image), size)
    with open_medium(medium) as file:
        content = file.read()  # At once: later errors are about the content, not the disk.
    try:
        with Image.open(io.BytesIO(content)) as opened:
            check_size(medium, Size(opened.height, opened.width), smallest)
            side = 2 * max(size.height, size.width)  # For either orientation.
            opened.draft("RGB", (side, side))
            image = to_rgb(opened)
    except (Fault, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files.
        raise Fault("corrupt_image", f"{describe(medium)}: {error}") from error
    return fit(image, size)


@contextlib.contextmanager
def standard_errors(medium: Path | bytes) -> Iterator[None]:
    """Raises FileNotFoundError or ValueError in place of `Fault`, for callers that have no list of invalid examples."""
    try:
        yield
    except Fault as fault:
        if fault.kind == "missing_file":
            raise FileNotFoundError(f"no file at {medium}") from fault
        raise ValueError(f"{describe(medium)} cannot be read: {fault.reason}") from fault


def load_image(
    medium: str | Path | bytes, size: int | tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """`read_image` for one file (or its bytes) that is not part of a data set; images of any size are accepted.

    Args:
        medium: the file, or its bytes.
        size: the side of a square, or (height, width).

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not an image that can be read.
    """
    medium = Path(medium) if isinstance(medium, str) else medium
    height, width = (size, size) if isinstance(size, int) else size
    with standard_errors(medium):
        return read_image(medium, Size(height, width), smallest=1)
