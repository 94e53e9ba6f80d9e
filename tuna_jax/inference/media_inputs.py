"""What a model is shown: pictures and clips as files, Pillow pictures or arrays, made bytes of one size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.media.image import Size, fit, load_image, to_rgb
from tuna_jax.data.media.video import SUFFIXES, load_video

# An image is a file, an encoded file's bytes, a Pillow image or uint8 [height, width, 3];
# a video is a file or uint8 [frames, height, width, 3].
MediaInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Clip = UInt8[np.ndarray, "frames height width 3"]


def is_video(item: MediaInput) -> bool:
    """Whether it is a clip: an array with a frame axis, or a file that is named like a video."""
    if isinstance(item, np.ndarray):
        return item.ndim == 4
    return isinstance(item, (str, os.PathLike)) and Path(item).suffix.lower() in SUFFIXES


def as_clip(item: MediaInput, size: tuple[int, int], frames: int = 17, step: int = 4) -> Clip:
    """Bytes of (height, width); a picture is a clip of one frame.

    Args:
      item: what is shown. Another size is scaled and cropped to its middle.
      size: (height, width).
      frames: how many frames are taken of a video file (`load_video`); an array's are all taken.
      step: frames that a latent frame covers.

    Raises:
      FileNotFoundError: no such file.
      ModuleNotFoundError: a video file, and `av` is not installed.
      ValueError: a file that cannot be read, or an array that is no picture and no clip.
    """
    if isinstance(item, Image.Image):
        return fit(to_rgb(item), Size(*size))[None]
    if isinstance(item, bytes):
        return load_image(item, size)[None]
    if not isinstance(item, np.ndarray):
        if is_video(item):
            return load_video(Path(item), size, frames, step)
        return load_image(Path(item), size)[None]
    array = item if item.ndim == 4 else item[None]
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"an array {item.dtype} {list(item.shape)} is neither a picture, uint8 [height, width, 3], "
            f"nor a clip, uint8 [frames, height, width, 3]"
        )
    if array.shape[1:3] == size:
        return array
    return np.stack([fit(Image.fromarray(frame), Size(*size)) for frame in array])


def as_list(items: MediaInput | Sequence[MediaInput] | None) -> list[MediaInput]:
    """None, one or several: always a list. An array is one picture or one clip, whatever its axes."""
    if items is None:
        return []
    if isinstance(items, (str, os.PathLike, bytes, Image.Image, np.ndarray)):
        return [items]
    return list(items)
