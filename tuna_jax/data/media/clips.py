"""Video files to arrays and back. Wants the package `av` (FFmpeg), which is imported when it is needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import Size
from tuna_jax.data.media.video import check_frames, import_av, read_video

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

Clip = UInt8[np.ndarray, "frames height width 3"]


def write_clip(path: str | Path, clip: Clip, fps: float = 8.0) -> Path:
    """Writes frames as an MP4 (H.264, 4:2:0), which wants even sides.

    Args:
      path: the file; its folder must exist.
      clip: the frames.
      fps: frames a second.

    Raises:
      ModuleNotFoundError: `av` is not installed.
      ValueError: an odd side.
    """
    av, path = import_av(path), Path(path)
    height, width = clip.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 wants even sides, and the frames are {height}x{width}")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "16"}
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def read_clip(path: str | Path, size: tuple[int, int], frames: int, step: int = 4) -> Clip:
    """Frames of a video file, evenly spaced from its first to its last: `video.read_video` for one file, not a row.

    Args:
      path: the file.
      size: (height, width) to which frames are scaled and cropped.
      frames: how many, `1 + step * k`; of a shorter video as many as there are of this form.
      step: frames that a latent frame covers.

    Raises:
      ModuleNotFoundError: `av` is not installed.
      FileNotFoundError: no such file.
      ValueError: not a video, one without frames, or `frames` of another form.
    """
    try:
        check_frames(frames, step)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video at {path}")
    import_av(path)
    try:
        return read_video(Path(path), Size(*size), frames, smallest=1, shorten=step)
    except Fault as fault:
        raise ValueError(f"{path} is not a video that can be read: {fault.reason}") from fault
