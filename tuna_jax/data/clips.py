"""Video files to arrays and back. Wants the package `av` (FFmpeg), which is imported when it is needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.pictures import fit

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")

Clip = UInt8[np.ndarray, "frames height width 3"]


def import_av(path: str | Path) -> Any:
    """The package; ModuleNotFoundError tells for which video it is wanted, and how to get it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(f"{path} is a video, which wants: pip install av") from error
    return av


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
    """Frames of a video file, evenly spaced from its first to its last.

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
    if frames < 1 or (frames - 1) % step:
        raise ValueError(f"{path}: {frames} frames is not 1 + {step}k")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no video at {path}")
    av = import_av(path)
    try:
        # Two passes, so that only the frames that are taken are held. A header's count may be wrong.
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        count = min(frames, 1 + (total - 1) // step * step)
        wanted = set(np.linspace(0, total - 1, count).round().astype(int).tolist())
        with av.open(str(path)) as container:
            taken = [
                fit(Image.fromarray(frame.to_ndarray(format="rgb24")), size)
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read: {error}") from error
    if not taken:
        raise ValueError(f"{path} holds no frames")
    return np.stack(taken)
