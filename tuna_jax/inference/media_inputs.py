"""Input images and videos as files, folders, Pillow images or arrays, converted to uint8 clips of one size."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.media.image import Size, fit, load_image, standard_errors, to_rgb
from tuna_jax.data.media.video import is_clip, load_video
from tuna_jax.utils.data_uri import decode_data_uri, is_data_uri


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file, or its bytes, that is read as a picture, as a manifest's `image` is: of an animation its first frame."""

    medium: str | os.PathLike[str] | bytes


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A file, its bytes, or a folder that is read as a video, as a manifest's `video` is: of a picture one frame."""

    medium: str | os.PathLike[str] | bytes


MediaInput = str | os.PathLike[str] | bytes | ImageFile | VideoFile | Image.Image | np.ndarray
"""An image or a video: a file (`ImageFile` and `VideoFile` say which; of others the content decides), a folder of
frames, a data URI, the bytes of a file, a Pillow image, or uint8 [height, width, 3] or [frames, height, width, 3]."""
Clip = UInt8[np.ndarray, "frames height width 3"]


def medium_of(item: str | os.PathLike[str] | bytes | ImageFile | VideoFile) -> Path | bytes:
    """A file's path, or the bytes of a file; those that a data URI holds are decoded.

    Raises:
      ValueError: a data URI is damaged.
    """
    if isinstance(item, (ImageFile, VideoFile)):
        return medium_of(item.medium)
    if isinstance(item, bytes):
        return item
    name = os.fspath(item)
    return decode_data_uri(name) if is_data_uri(name) else Path(name)


def is_video(item: MediaInput) -> bool:
    """Whether `item` is a video: an array with a frame axis, or by its content a video, an animation or a folder.

    A file that does not exist is judged by its suffix.
    """
    if isinstance(item, np.ndarray):
        return item.ndim == 4
    if isinstance(item, (Image.Image, ImageFile, VideoFile)):
        return isinstance(item, VideoFile)
    return is_clip(medium_of(item))


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
    if isinstance(item, Image.Image):
        with standard_errors(b""):
            return fit(to_rgb(item), Size(*size))[None]
    if not isinstance(item, np.ndarray):
        medium = medium_of(item)
        if isinstance(item, VideoFile) or (not isinstance(item, ImageFile) and is_clip(medium)):
            return load_video(medium, size, frames, step)
        return load_image(medium, size)[None]
    array = item if item.ndim == 4 else item[None]
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"an array {item.dtype} {list(item.shape)} is neither an image, uint8 [height, width, 3], "
            f"nor a clip, uint8 [frames, height, width, 3]"
        )
    if array.shape[1:3] == size:
        return array
    return np.stack([fit(Image.fromarray(frame), Size(*size)) for frame in array])


def as_picture(item: MediaInput, size: tuple[int, int]) -> Clip:
    """An image as a clip of one frame, for callers that take no videos: of an animation its first frame.

    An array with a frame axis keeps its frames; other arguments and errors are those of `as_clip`.
    """
    return as_clip(of_kind([item], "image")[0], size)


def of_kind(media: Sequence[MediaInput], kind: str) -> list[MediaInput]:
    """Media of which the files are of a kind: 'image', 'video', or '' where their content decides."""
    wrapper = {"image": ImageFile, "video": VideoFile}.get(kind)
    if wrapper is None:
        return list(media)
    return [
        wrapper(item) if isinstance(item, (str, os.PathLike, bytes)) else item for item in media
    ]


def as_list(items: MediaInput | Sequence[Any] | None) -> list[Any]:
    """A list of None, one or several media inputs, or lists of them. An array is one image or one clip, whatever its
    number of axes."""
    if items is None:
        return []
    if isinstance(items, (str, os.PathLike, bytes, ImageFile, VideoFile, Image.Image, np.ndarray)):
        return [items]
    return list(items)
