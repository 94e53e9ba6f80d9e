"""Decoded frames of FFmpeg (the package `av`) as upright 8-bit sRGB images, whatever their colours, depth and alpha.

`av` converts with the right matrix and range only where both are named: versions 15 and 16 take BT.601 for everything
else, and FFmpeg takes it for streams that name none. So every conversion here names them, as numbers of ITU-T H.273.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media import color
from tuna_jax.data.media.color import Hdr

# The image, and (height, width) at which it is shown, where its pixels are not square.
Frame = tuple[Image.Image, tuple[float, float] | None]

_UNSPECIFIED, _LIMITED, _FULL = 2, 1, 2
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 27)  # Of a frame, as of a picture.


def check_pixels(width: int, height: int, where: str) -> None:
    """Raises Fault (corrupt_video) for a frame so large that it can only be an attack or damage."""
    if width * height > _MOST_PIXELS:
        raise Fault(
            "corrupt_video",
            f"{where}: its frames have {width}x{height} pixels, more than the {_MOST_PIXELS} that are read",
        )


class FrameConverter:
    """Converts the frames of one stream; the scaler is set up once and not for every frame, which would take most time.

    Args:
        av: the package.
        stream: the video stream.
        where: the file's name, for messages.
        hdr: 'tone_map', or 'refuse' streams in PQ or HLG.
        least: (height, width) that HDR frames are shrunk towards before tone mapping, but not below twice of it.

    Raises:
        Fault: corrupt_video, if the stream's colours cannot be shown.
    """

    def __init__(
        self,
        av: Any,
        stream: Any,
        where: str,
        hdr: Hdr = "tone_map",
        least: tuple[int, int] | None = None,
    ):
        self._where, self._least = where, least
        self._reformatter = av.video.reformatter.VideoReformatter()
        codec = stream.codec_context
        self._primaries = int(codec.color_primaries or _UNSPECIFIED)
        self._transfer = int(codec.color_trc or _UNSPECIFIED)
        if color.is_hdr(self._transfer) and hdr == "refuse":
            raise color.refuse_hdr(where, "corrupt_video")
        self._aspect = _aspect(stream)

    def shown_size(self, frame: Any) -> tuple[float, float]:
        """(height, width) at which a frame is shown: pixels made square, and upright."""
        height, width = float(frame.height), frame.width * self._aspect
        return (width, height) if _matrix(frame)[0] else (height, width)

    def image(self, frame: Any) -> Image.Image:
        """A frame in sRGB, upright, its transparent parts on white; its pixels need not be square.

        Raises:
            Fault: corrupt_video, for colours that no conversion is known for.
        """
        check_pixels(frame.width, frame.height, self._where)
        pixels = frame.format
        alpha = pixels.has_palette or any(part.is_alpha for part in pixels.components)
        if color.is_hdr(self._transfer) or self._transfer == color.LINEAR:
            codes = self._reformatted(frame, "rgb48le", shrink=True)
            image = Image.fromarray(color.to_srgb(codes, self._primaries, self._transfer))
        elif alpha:
            image = color.on_white(Image.fromarray(self._reformatted(frame, "rgba")))
        else:
            image = Image.fromarray(self._reformatted(frame, "rgb24"))
        transposed, mirrored, flipped = _matrix(frame)
        for wanted, turn in (
            (transposed, Image.Transpose.TRANSPOSE),
            (mirrored, Image.Transpose.FLIP_LEFT_RIGHT),
            (flipped, Image.Transpose.FLIP_TOP_BOTTOM),
        ):
            image = image.transpose(turn) if wanted else image
        return image

    def _reformatted(self, frame: Any, format: str, shrink: bool = False) -> np.ndarray:
        options: dict[str, Any] = {}
        if not (frame.format.is_rgb or frame.format.has_palette):
            matrix, span = self._matrix_of(frame), _range(frame)
            options = {
                "src_colorspace": matrix,
                # Another than the source's, or versions before 17 skip the conversion; RGB has no matrix.
                "dst_colorspace": 1 if matrix != 1 else 5,
                "src_color_range": span,
                "dst_color_range": _FULL,
            }
        if shrink and self._least is not None:
            factor = 2 * max(self._least) / min(frame.width, frame.height)
            if factor < 1:
                options["width"] = max(1, round(frame.width * factor))
                options["height"] = max(1, round(frame.height * factor))
        return self._reformatter.reformat(frame, format=format, **options).to_ndarray()

    def _matrix_of(self, frame: Any) -> int:
        matrix = int(frame.colorspace)
        if matrix in (_UNSPECIFIED, 15) and any(
            entry.type.name.startswith("DOVI") for entry in frame.side_data
        ):
            raise Fault(
                "corrupt_video",
                f"{self._where} is Dolby Vision of profile 5, whose colours FFmpeg cannot convert; export it as "
                "HDR10 or SDR",
            )
        if matrix in (_UNSPECIFIED, 0, 3):
            if self._primaries == 9:
                return 9
            # As players do: high definition that names nothing is BT.709, the rest BT.601.
            return 1 if frame.width >= 1280 or frame.height > 576 or self._primaries == 1 else 6
        if matrix == 10:  # BT.2020 with constant luminance; close to the usual one.
            return 9
        if matrix not in color.MATRICES:
            raise Fault(
                "corrupt_video",
                f"{self._where}: its colours use the matrix {matrix} of ITU-T H.273, which is not supported; "
                "convert it to BT.709",
            )
        return matrix


def _range(frame: Any) -> int:
    named = int(frame.color_range)
    if named in (_LIMITED, _FULL):
        return named
    return _FULL if frame.format.name.startswith("yuvj") else _LIMITED


def _aspect(stream: Any) -> float:
    """Width of a pixel divided by its height. Absurd ones, of damaged files, count as 1."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    value = float(aspect) if aspect else 1.0
    return value if 1 / 16 <= value <= 16 else 1.0


def _matrix(frame: Any) -> tuple[bool, bool, bool]:
    """How a frame is made upright: transpose, then mirror left and right, then flip upside down.

    From the display matrix that phones write (ISO 14496-12, 8.3.2), taken to the nearest right angle.
    """
    for entry in frame.side_data:
        if entry.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("<5i", bytes(entry)[:20])
            if abs(b) + abs(c) > abs(a) + abs(d):
                return True, c < 0, b < 0
            return False, a < 0, d < 0
    return False, False, False
