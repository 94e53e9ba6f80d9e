"""Images at the size that a batch needs: uint8 RGB pixels, not normalised. Video: video.py.

Training, inference, editing, precomputed latents and evaluation all read images here, so that the same file gives the
same pixels everywhere. `to_rgb` holds every rule about orientation, colour (color.py) and transparency, `fit` and
`stretch` every rule about scaling; formats.py tells what a file is.

A failure that is the file's fault raises `Fault` (invalid_examples.py); a failing disk raises its own error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import BFloat16, UInt8
from PIL import Image

from tuna_jax.data.invalid_examples import Fault, fault_of
from tuna_jax.data.media import color
from tuna_jax.data.media.color import Hdr
from tuna_jax.data.media.formats import HEAD, explain, picture_formats, sniff
from tuna_jax.utils.buckets import BucketFile
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


# A file (local or in a bucket), its bytes, or pixels: uint8 [h, w, c] of an image, [f, h, w, c] of a video, c 1, 3, 4.
Pixels = Path | BucketFile | bytes | UInt8[np.ndarray, "*extent"]
Medium = Pixels | Encoded


def describe(medium: Pixels) -> str:
    """How messages name it."""
    return (
        str(medium)
        if isinstance(medium, (Path, BucketFile))
        else "the image or video in the example"
    )


def open_medium(medium: Path | BucketFile | bytes) -> Any:
    """Opens a file, or bytes, as a binary file.

    Raises:
        Fault: missing_file, or unreadable_file (no permission, a pipe, a device).
        OSError: the disk or the bucket fails.
    """
    if isinstance(medium, bytes):
        return io.BytesIO(medium)
    try:
        return medium.open() if isinstance(medium, BucketFile) else open_regular(medium)
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


def orientation(opened: Image.Image) -> int:
    """The orientation that EXIF, or else XMP, gives: 1 (upright) to 8. Reads the header only.

    Damaged metadata count as upright, as viewers show it.
    """
    try:
        # The base class: PNG's own method decodes the pixels, because metadata may follow them.
        exif = Image.Image.getexif(opened)
        value = exif.get(_ORIENTATION)
        if value is None and opened.format == "PNG":
            value = _orientation_after_pixels(opened)
    except Exception:  # Parsers of metadata raise almost anything.
        value = 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orientation_after_pixels(opened: Any) -> int:
    """The orientation in the EXIF or XMP that follows the pixels of a PNG file, whose chunks are skipped; else 1."""
    file = getattr(opened, "fp", None)
    if file is None or not getattr(opened, "tile", None):
        return 1
    position, after = file.tell(), False
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            length, start = int.from_bytes(head[:4], "big"), file.tell()
            after |= head[4:] == b"IDAT"
            if after and head[4:] == b"eXIf":
                exif = Image.Exif()
                exif.load(file.read(length))
                return exif.get(_ORIENTATION, 1)
            if after and head[4:] == b"iTXt" and file.read(17) == b"XML:com.adobe.xmp":
                match = re.search(rb'tiff:Orientation(="|>)([0-9])', file.read(length - 17))
                return int(match[2]) if match else 1
            file.seek(start + length + 4)
        return 1
    finally:
        file.seek(position)


def upright_size(opened: Image.Image) -> Size:
    """The size after the orientation (EXIF or XMP) is applied. Reads the header only."""
    # Pillow opens TIFF at its upright size, but sees only the tag, not XMP.
    if opened.format == "TIFF" and _ORIENTATION in getattr(opened, "tag_v2", {}):
        return Size(opened.height, opened.width)
    swapped = orientation(opened) >= 5
    return Size(opened.width, opened.height) if swapped else Size(opened.height, opened.width)


@contextlib.contextmanager
def decoding_errors(medium: Pixels, head: bytes, wanted: str = "picture") -> Iterator[None]:
    """Turns what a decoder raises inside into a Fault (corrupt_image) that names the file and what it is.

    Args:
        medium: the file.
        head: its first bytes (`formats.HEAD`).
        wanted: 'picture' or 'video', for the message.
    """
    try:
        yield
    except Fault as fault:
        name = describe(medium)
        if name in fault.reason:
            raise
        raise Fault(fault.kind, f"{name}: {fault.reason}") from fault
    except (MemoryError, ModuleNotFoundError):
        raise
    except Image.UnidentifiedImageError as error:
        unsupported = "its header is damaged, or its kind is not supported"
        raise Fault(
            "corrupt_image", f"{describe(medium)}: {explain(head, wanted, unsupported)}"
        ) from error
    except Exception as error:  # Pillow's plugins raise almost anything on broken files.
        raise Fault("corrupt_image", f"{describe(medium)}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def open_picture(file: Any) -> Image.Image:
    """Pillow's lazy image of an open binary file, in one of the formats that are read."""
    return Image.open(file, formats=picture_formats())


def draft(opened: Image.Image, size: Size | None, reduced: bool = False) -> None:
    """Lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, but not below twice `size`, or `size` if `reduced`."""
    if size is not None:
        side = (1 if reduced else 2) * max(size.height, size.width)  # For either orientation.
        opened.draft("RGB", (side, side))


def image_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE) -> Size:
    """An image's size after its orientation is applied, from its header only.

    Raises:
        Fault: missing_file, corrupt_image (of the header), or tiny_image.
    """
    if isinstance(medium, np.ndarray):
        image = from_array(medium)
        return check_size(medium, Size(image.height, image.width), smallest)
    with open_medium(medium) as file:
        head = file.read(HEAD)
        file.seek(0)
        with decoding_errors(medium, head), open_picture(file) as opened:
            size = upright_size(opened)
    return check_size(medium, size, smallest)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(opened: Image.Image, *, hdr: Hdr = "tone_map") -> Image.Image:
    """An image of any mode as 8-bit sRGB, upright, with transparent parts on white.

    EXIF's or XMP's orientation is applied, then the embedded ICC profile (or PNG's cICP, AVIF's colr, PNG's gAMA);
    16-bit grey and floats in 0..1 are scaled by their range. The image is decoded, so its file may be closed
    afterwards.

    Args:
        opened: the image, at its current frame.
        hdr: 'tone_map' or 'refuse', for PNG and AVIF in PQ or HLG.

    Raises:
        Fault: corrupt_image, for 32-bit integers and floats beyond 0..1, whose brightness no file says.
    """
    colors = color.coding_of(opened)
    # Pillow turns TIFF itself.
    turn = None if opened.format == "TIFF" else _TURNS.get(orientation(opened))
    opened.load()
    image, info = opened, opened.info
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = color.eight_bits(image, "the picture")
    if image.mode == "La":
        image = image.convert("LA")
    if colors is not None:
        image = color.decode(image, *colors, hdr=hdr)
    elif info.get("icc_profile"):
        image = color.apply_profile(image, info["icc_profile"])
    elif opened.format == "PNG" and "srgb" not in info:
        image = color.apply_gamma(image, info.get("gamma"))
    image = color.on_white(image)
    return image.transpose(turn) if turn is not None else image


def fit(
    image: Image.Image, size: Size, shown: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image scaled until it covers `size`, and cropped to its centre.

    Args:
        image: the image.
        size: of the result.
        shown: (height, width) at which an image whose pixels are not square is shown; None: its own.
    """
    across, down = 1.0, 1.0  # Stored pixels per shown pixel.
    if shown is not None:
        down, across = image.height / shown[0], image.width / shown[1]
    scale = min(image.width / across / size.width, image.height / down / size.height)
    width, height = size.width * scale * across, size.height * scale * down
    left, top = max((image.width - width) / 2, 0), max((image.height - height) / 2, 0)
    width, height = min(width, image.width - left), min(height, image.height - top)
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((size.width, size.height), FILTER, box=box), np.uint8)


def stretch(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image scaled to `size` without a crop; its aspect ratio may change."""
    return np.asarray(image.resize((size.width, size.height), FILTER), np.uint8)


def read_image(
    medium: Pixels,
    size: Size,
    *,
    smallest: int = SMALLEST_SIDE,
    hdr: Hdr = "tone_map",
    reduced: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB (`to_rgb`), scaled and cropped to a size (`fit`). Of an animation it is the first frame.

    A JPEG that is much larger is decoded at 1/2, 1/4 or 1/8 of its size, but never below twice the size needed.

    Args:
        medium: the file, its bytes, or pixels.
        size: of the result.
        smallest: the shortest side, in pixels, of a usable image.
        hdr: see `to_rgb`.
        reduced: decode a JPEG at a fraction that is not below the size needed, in place of twice it: faster, and less
            exact. Only training has it, as a setting.

    Raises:
        Fault: missing_file, corrupt_image, or tiny_image.
    """
    return fit(_read_rgb(medium, size, smallest, hdr, reduced), size)


def _read_rgb(
    medium: Pixels, size: Size | None, smallest: int, hdr: Hdr, reduced: bool = False
) -> Image.Image:
    """An image as RGB, at its own size or, of a JPEG, not much below twice `size` (`size` if `reduced`)."""
    if isinstance(medium, np.ndarray):
        image = from_array(medium)
        check_size(medium, Size(image.height, image.width), smallest)
        return to_rgb(image)
    with open_medium(medium) as file:
        head = file.read(HEAD)
        if sniff(head) in ("video", "sound", "other"):  # Before gigabytes of it are read.
            raise Fault("corrupt_image", f"{describe(medium)}: {explain(head, 'picture')}")
        content = head + file.read()  # At once: later errors are about the content, not the disk.
    with decoding_errors(medium, head), open_picture(io.BytesIO(content)) as opened:
        check_size(medium, Size(opened.height, opened.width), smallest)
        draft(opened, size, reduced)
        return to_rgb(opened, hdr=hdr)


@contextlib.contextmanager
def standard_errors(medium: Path | bytes) -> Iterator[None]:
    """Raises FileNotFoundError or ValueError in place of `Fault`, for callers that have no list of invalid examples."""
    try:
        yield
    except Fault as fault:
        if fault.kind == "missing_file":
            raise FileNotFoundError(f"no file at {medium}") from fault
        named = describe(medium) in fault.reason
        reason = fault.reason if named else f"{describe(medium)} cannot be read: {fault.reason}"
        raise ValueError(reason) from fault


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


def load_rgb(medium: str | Path | bytes) -> Image.Image:
    """A whole image as RGB (`to_rgb`) at its own size, for callers outside a data set.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not an image that can be read; the message names it.
    """
    medium = Path(medium) if isinstance(medium, str) else medium
    with standard_errors(medium):
        return _read_rgb(medium, None, 1, "tone_map")


def file_size(medium: str | Path | bytes) -> Size:
    """`image_size` for callers outside a data set; images of any size are accepted. Errors are those of `load_rgb`."""
    medium = Path(medium) if isinstance(medium, str) else medium
    with standard_errors(medium):
        return image_size(medium, smallest=1)
