"""Video at the size that a batch needs: which frames are taken, and how files are written. clips.py opens them.

A failure that is the file's fault raises `Fault` (invalid_examples.py); a failing disk or a missing decoder raises its
own error. The package `av` (FFmpeg) is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.clips import is_clip, open_clip
from tuna_jax.data.media.color import Hdr
from tuna_jax.data.media.containers import FewerFrames, import_av
from tuna_jax.data.media.image import (
    SMALLEST_SIDE,
    Pixels,
    Size,
    check_size,
    describe,
    fit,
    standard_errors,
)

__all__ = [
    "check_frames",
    "choose_frames",
    "import_av",
    "is_clip",
    "load_video",
    "read_video",
    "video_size",
    "write_video",
]

Video = UInt8[np.ndarray, "frames height width 3"]


def check_frames(frames: int, temporal_factor: int = 4) -> int:
    """The number of latent frames of `frames` = 1 + 4k frames; otherwise ValueError names the nearest valid counts."""
    if frames < 1 or (frames - 1) % temporal_factor:
        below = max(1, (frames - 1) // temporal_factor * temporal_factor + 1)
        raise ValueError(
            f"{frames} frames is not 1 + {temporal_factor}k, which the video VAE requires; "
            f"the nearest are {below} and {below + temporal_factor}"
        )
    return 1 + (frames - 1) // temporal_factor


def choose_frames(
    times: Sequence[float],
    frames: int,
    fps: float | None = None,
    position: float = 0.0,
    end: float | None = None,
) -> list[int]:
    """Which frames of a video to take, by the time at which they are on screen.

    Args:
        times: when each frame appears, in seconds, ascending.
        frames: how many to take.
        fps: None spreads them evenly over the whole video, from the middle of the first frame to the middle of the
            last one; else frames per second. A video shorter than frames / fps is sampled evenly too, instead of
            repeating its last frame.
        position: where the frames taken at `fps` begin, from 0 (as early as possible) to 1 (as late as possible).
        end: when the last frame disappears; None: it stays as long as the others do on average.

    Returns:
        Ascending indices. A video with fewer frames repeats some, evenly.
    """
    starts = np.asarray(times, np.float64)
    usual = (starts[-1] - starts[0]) / max(len(starts) - 1, 1)
    end = max(starts[-1] + usual if end is None else end, starts[-1])
    if frames == 1:
        return [0]
    if fps:
        span = (frames - 1) / fps
        slack = max(starts[-1] - starts[0] - span, end - starts[0] - frames / fps)
        if slack >= -1e-9:
            begin = starts[0] + position * max(slack, 0.0)
            return _on_screen(starts, begin + np.arange(frames) * span / (frames - 1))
    steady = starts[0] + usual * np.arange(len(starts))
    if np.abs(starts - steady).max() <= 0.1 * usual and abs(end - starts[-1] - usual) <= usual / 2:
        # By number, which is the same and does not depend on how time stamps are rounded.
        return [round(float(at)) for at in np.linspace(0, len(starts) - 1, frames)]
    mean = (end - starts[0]) / len(starts)
    first = min(starts[1] - starts[0] if len(starts) > 1 else mean, mean) / 2
    last = min(end - starts[-1], mean) / 2
    return _on_screen(starts, np.linspace(starts[0] + first, end - last, frames))


def _on_screen(starts: np.ndarray, moments: np.ndarray) -> list[int]:
    """The frame on screen at each moment."""
    # A tenth of a frame absorbs rounding of time stamps, and a rate of 30 for clips of 29.97.
    gaps = np.diff(starts)
    moments = moments + 0.1 * max(gaps[gaps > 0].min(initial=0.1), 1e-5)
    indices = np.searchsorted(starts, moments, side="right") - 1
    return [int(index) for index in np.clip(indices, 0, len(starts) - 1)]


def video_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE, hdr: Hdr = "tone_map") -> Size:
    """The size at which a video is shown: upright, its pixels made square. From its first frame.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of images.
    """
    with open_clip(medium, hdr=hdr) as clip:
        return check_size(medium, clip.size(), smallest)


def read_video(
    medium: Pixels,
    size: Size,
    frames: int,
    *,
    fps: float | None = None,
    position: float = 0.0,
    smallest: int = SMALLEST_SIDE,
    shorten: int | None = None,
    hdr: Hdr = "tone_map",
) -> Video:
    """Frames of a clip (whatever `open_clip` opens), each scaled and cropped (`fit`).

    Args:
        medium: the file, its bytes, a folder of frames, or pixels. The last two have no time stamps and are sampled
            evenly.
        size: of every frame.
        frames: how many, 1 + 4k for a VAE that halves time twice (`check_frames`).
        fps, position: see `choose_frames`.
        smallest: the shortest side, in pixels, of a usable video.
        shorten: a video with fewer frames gives as many as it has of the form 1 + `shorten` k; None repeats frames.
        hdr: 'tone_map' or 'refuse' clips in high dynamic range (PQ and HLG).

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image of pictures.
    """
    with open_clip(medium, hdr=hdr, least=size) as clip:
        for attempt in range(3):
            count = _shortened(frames, len(clip.starts), shorten)
            rate = fps if clip.timed else None
            indices = choose_frames(clip.starts, count, rate, position, clip.end)
            pixels: dict[int, np.ndarray] = {}
            wanted = sorted(set(indices))
            try:
                for index, (image, shown) in zip(wanted, clip.frames(wanted), strict=True):
                    height, width = shown or (image.height, image.width)
                    check_size(medium, Size(round(height), round(width)), smallest)
                    pixels[index] = fit(image, size, shown)
            except FewerFrames as fewer:
                if attempt == 2 or not fewer.count:
                    raise Fault("corrupt_video", f"{describe(medium)} cannot be counted") from fewer
                clip.number(fewer.count)
                continue
            return np.stack([pixels[index] for index in indices])
    raise AssertionError("unreachable")


def _shortened(frames: int, available: int, step: int | None) -> int:
    """How many frames to take of those available."""
    return frames if step is None else min(frames, 1 + (available - 1) // step * step)


def load_video(
    path: str | Path | bytes, size: tuple[int, int], frames: int, step: int = 4
) -> Video:
    """Frames of one video that is not part of a data set, evenly spaced from first to last (`read_video`).

    Args:
        path: the file, its bytes, or a folder of frames.
        size: (height, width) to which frames are scaled and cropped.
        frames: how many, `1 + step * k`. A shorter video gives as many as it has of this form.
        step: frames per latent frame.

    Raises:
        ModuleNotFoundError: `av` is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: it is not a video that can be read, it has no frames, or `frames` has another form.
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        check_frames(frames, step)
    except ValueError as error:
        raise ValueError(f"{describe(path)}: {error}") from error
    with standard_errors(path):
        return read_video(path, Size(*size), frames, smallest=1, shorten=step)


def write_video(path: str | Path, video: Video, fps: float = 8.0) -> Path:
    """Writes frames as an MP4 file (H.264, 4:2:0), which requires even sides.

    Args:
        path: the file; its folder must exist.
        video: the frames.
        fps: frames per second.

    Raises:
        ModuleNotFoundError: `av` is not installed.
        ValueError: a side is odd.
    """
    av, path = import_av(path), Path(path)
    height, width = video.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 requires even sides, and the frames are {height}x{width}")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "16"}
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
