"""Images and videos of requests: data URLs to pixels of a shape that is served, within limits that are checked before
anything is decoded; and results as files."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.clips import open_clip
from tuna_jax.data.media.image import file_size, load_image
from tuna_jax.data.media.video import load_video, write_video
from tuna_jax.inference.media_inputs import ImageFile, VideoFile
from tuna_jax.inference.trained_shapes import nearest_shape
from tuna_jax.serving import errors
from tuna_jax.serving.served import Served
from tuna_jax.utils.data_uri import decode_data_uri, is_data_uri

MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def content_of(url: str, fetched: Mapping[str, bytes], param: str) -> bytes:
    """The bytes of a data URL, or of one of those that were fetched (`remote.Remote.fetch`).

    Raises:
      ApiError: it is a damaged data URL.
    """
    if not is_data_uri(url):
        return fetched[url]
    try:
        return decode_data_uri(url)
    except ValueError as error:
        raise errors.invalid(param, str(error), "invalid_data_url") from None


def image(
    content: bytes, shapes: tuple[tuple[int, int], ...], served: Served, param: str
) -> np.ndarray:
    """An image, scaled and cropped to the nearest of the shapes, uint8 [1, height, width, 3].

    Raises:
      ApiError: it is too large, or cannot be read.
    """
    try:
        size = file_size(content)
        _check_pixels(size.height, size.width, served, param)
        shape = nearest_shape(shapes, shapes[0], ImageFile(content))
        return load_image(content, shape)[None]
    except (ValueError, OSError, MemoryError, Image.DecompressionBombError) as error:
        raise _unreadable(error, "image", param) from None


def video(content: bytes, served: Served, param: str) -> np.ndarray:
    """A clip of one of the numbers of frames that are served, uint8 [frames, height, width, 3].

    A clip of more frames is sampled evenly.

    Raises:
      ApiError: it is too large, cannot be read, or the model takes no clips.
    """
    if not served.frames:
        raise errors.invalid(param, "this model takes no videos", "unsupported_media")
    limit = served.settings.max_video_frames
    try:
        with open_clip(content) as clip:
            size, count = clip.size(), len(clip.starts)
        _check_pixels(size.height, size.width, served, param)
        if count > limit:
            message = f"the video has {count} frames; the limit is {limit}"
            raise errors.invalid(param, message, "video_too_long")
        shape = nearest_shape(served.clip_shapes, served.clip_shapes[0], VideoFile(content))
        fitting = [frames for frames in served.frames if frames <= max(count, served.frames[0])]
        frames = load_video(content, shape, fitting[-1], step=1)
    except (Fault, ValueError, OSError, MemoryError, Image.DecompressionBombError) as error:
        raise _unreadable(error, "video", param) from None
    # A shorter clip, or one whose container promised more, repeats frames evenly.
    index = np.linspace(0, len(frames) - 1, fitting[-1]).round().astype(int)
    return frames[index]


def _check_pixels(height: int, width: int, served: Served, param: str) -> None:
    most = served.settings.max_pixels
    if height * width > most:
        message = f"{width}x{height} is {height * width} pixels; the limit is {most}"
        raise errors.invalid(param, message, "too_many_pixels")


def _unreadable(error: BaseException, what: str, param: str) -> errors.ApiError:
    if isinstance(error, errors.ApiError):
        return error
    reason = str(error).replace("the image or video in the example", f"the {what}")[:300]
    return errors.invalid(param, reason or f"the {what} cannot be read", f"invalid_{what}")


def encoded(picture: np.ndarray, kind: str) -> bytes:
    """An image, uint8 [height, width, 3], as a file."""
    file = io.BytesIO()
    options = {"quality": 95} if kind == "jpeg" else {"lossless": True} if kind == "webp" else {}
    Image.fromarray(picture).save(file, kind.upper(), **options)
    return file.getvalue()


def base64_of(content: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(content).decode("ascii")


def data_url(picture: np.ndarray, kind: str) -> str:
    """An image as a data URL."""
    return f"data:{MIME[kind]};base64,{base64_of(encoded(picture, kind))}"


def mp4(clip: np.ndarray, fps: float) -> bytes:
    """A clip as an MP4 file."""
    with tempfile.TemporaryDirectory(prefix="tuna_jax-serve-") as folder:
        return write_video(Path(folder) / "clip.mp4", clip, fps).read_bytes()
