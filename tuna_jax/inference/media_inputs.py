"""Input images and videos as files, Pillow images or arrays, converted to uint8 clips of one size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.media.image import Size, fit, load_image, to_rgb
from tuna_jax.data.media.video import SUFFIXES, load_video
from tuna_jax.utils.data_uri import decode_data_uri, is_data_uri

MediaInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""An image or a video: a file, a data URI, the bytes of an image file, a Pillow image, or uint8 [height, width, 3] or
[frames, height, width, 3]."""
Clip = UInt8[np.ndarray, "frames height width 3"]


def is_video(item: MediaInput) -> bool:
    """Whether `item` is a video: an array with a frame axis, or a file with the suffix of a video."""
    if isinstance(item, np.ndarray):
        return item.ndim == 4
    return isinstance(item, (str, os.PathLike)) and Path(item).suffix.lower() in SUFFIXES


def as_clip(item: MediaInput, size: tuple[int, int], frames: int = 17, step: int = 4) -> Clip:
    """An image or video as a clip of the given size; an image becomes a clip of one frame.

    Args:
      item: the image or video. If its size differs, it is scaled and center-cropped.
      size: (height, width) in pixels.
      frames: the largest number of frames taken of a video file (see `load_video`); an array keeps all of its frames.
      step: number of frames that a latent frame covers.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: `item` is a video file and `av` is not installed.
      ValueError: the file cannot be read, or the array is neither an image nor a clip.
    """
    if isinstance(item, (str, os.PathLike)) and is_data_uri(os.fspath(item)):
        item = decode_data_uri(os.fspath(item))
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
            f"an array {item.dtype} {list(item.shape)} is neither an image, uint8 [height, width, 3], "
            f"nor a clip, uint8 [frames, height, width, 3]"
        )
    if array.shape[1:3] == size:
        return array
    return np.stack([fit(Image.fromarray(frame), Size(*size)) for frame in array])


def as_list(items: MediaInput | Sequence[MediaInput] | None) -> list[MediaInput]:
    """A list of None, one or several media inputs. An array is one image or one clip, whatever its number of axes."""
    if items is None:
        return []
    if isinstance(items, (str, os.PathLike, bytes, Image.Image, np.ndarray)):
        return [items]
    return list(items)
