"""Video at the size that a batch needs: which frames are taken, how they are decoded, and how files are written.

A failure that is the file's fault raises `Fault` (invalid_examples.py); a failing disk or a missing decoder raises its
own error. The package `av` (FFmpeg) is imported when it is first needed.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.media.image import (
    SMALLEST_SIDE,
    Pixels,
    Size,
    check_size,
    describe,
    fit,
    image_size,
    open_medium,
    read_image,
    standard_errors,
)

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_INDEXED_CONTAINERS = {"mov", "matroska"}
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

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
    times: Sequence[float], frames: int, fps: float | None = None, position: float = 0.0
) -> list[int]:
    """Which frames of a video to take.

    Args:
        times: time of each frame in seconds, ascending.
        frames: how many to take.
        fps: None spreads them evenly over the whole video, first and last frame included; else frames per second.
            A video shorter than (frames - 1) / fps is sampled evenly too, instead of repeating its last frame.
        position: where the frames taken at `fps` begin, from 0 (as early as possible) to 1 (as late as possible).

    Returns:
        Ascending indices. A video with fewer frames repeats some, evenly.
    """
    span = (frames - 1) / fps if fps else math.inf
    slack = times[-1] - times[0] - span
    if slack < 0 or frames == 1:
        start, end = (0, len(times) - 1) if frames > 1 else (0, 0)
        return [round(float(at)) for at in np.linspace(start, end, frames)]
    begin = times[0] + position * slack
    targets = begin + np.arange(frames) * span / (frames - 1)
    # The frame on screen at that moment; the small addition absorbs rounding of time stamps.
    indices = np.searchsorted(np.asarray(times), targets + 1e-6, side="right") - 1
    return [int(index) for index in np.clip(indices, 0, len(times) - 1)]


def import_av(path: str | Path) -> Any:
    """The package `av`; ModuleNotFoundError names the video that needs it, and how to install it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path} is a video, which requires the package av (FFmpeg's libraries): pip install av"
        ) from error
    return av


def _converter(medium: Path | bytes) -> Any:
    """Converts frames to RGB."""
    return import_av(describe(medium)).video.reformatter.VideoReformatter()


def _open_video(medium: Path | bytes) -> Any:
    """A container with one decoder thread: Grain's threads already share the cores."""
    av = import_av(describe(medium))
    opened = open_medium(medium)  # Raises missing_file, which av does not distinguish.
    if isinstance(medium, Path):
        opened.close()
    try:
        container = av.open(str(medium) if isinstance(medium, Path) else opened)
    except av.FFmpegError as error:
        raise Fault("corrupt_video", f"{describe(medium)}: {error}") from error
    if not container.streams.video:
        container.close()
        raise Fault("no_frames", f"{describe(medium)} has no video stream")
    container.streams.video[0].codec_context.thread_count = 1
    return container


def _frame_files(folder: Path) -> list[Path]:
    """The images of a folder that holds a video's frames, in order of their names."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES)
    if not files:
        raise Fault("no_frames", f"the folder {folder} has no images ({_FRAME_SUFFIXES})")
    return files


def _frame_arrays(clip: UInt8[np.ndarray, "*extent"]) -> list[np.ndarray]:
    """The frames of a video given as pixels."""
    if clip.ndim != 4 or not len(clip):
        raise Fault(
            "no_frames", f"an array of shape {list(clip.shape)} is not a video [f, h, w, c]"
        )
    return list(clip)


def _to_image(frame: Any, converter: Any) -> Image.Image:
    """A decoded frame, upright: phones store the rotation as metadata.

    `converter` serves the whole video: `frame.to_image` would set one up for every frame, which takes most of the time.
    """
    image = Image.fromarray(converter.reformat(frame, format="rgb24").to_ndarray())
    degrees = round(getattr(frame, "rotation", 0) or 0) % 360
    return image.rotate(degrees, expand=True) if degrees else image


def video_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE) -> Size:
    """A video's size after its rotation is applied, from its first frame.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of images.
    """
    if isinstance(medium, np.ndarray):
        return image_size(_frame_arrays(medium)[0], smallest=smallest)
    if isinstance(medium, Path) and medium.is_dir():
        return image_size(_frame_files(medium)[0], smallest=smallest)
    with _open_video(medium) as container:
        try:
            first = next(container.decode(video=0), None)
        except import_av(describe(medium)).FFmpegError as error:
            raise Fault("corrupt_video", f"{describe(medium)}: {error}") from error
        if first is None:
            raise Fault("no_frames", f"{describe(medium)} has a video stream without frames")
        image = _to_image(first, _converter(medium))
    return check_size(medium, Size(image.height, image.width), smallest)


def read_video(
    medium: Pixels,
    size: Size,
    frames: int,
    *,
    fps: float | None = None,
    position: float = 0.0,
    smallest: int = SMALLEST_SIDE,
    shorten: int | None = None,
) -> Video:
    """Frames of a video (a file that FFmpeg reads, a folder of images, or pixels), each scaled and cropped (`fit`).

    Args:
        medium: the file, its bytes, the folder or the pixels. The last two have no time stamps and are sampled evenly.
        size: of every frame.
        frames: how many, 1 + 4k for a VAE that halves time twice (`check_frames`).
        fps, position: see `choose_frames`.
        smallest: the shortest side, in pixels, of a usable video.
        shorten: a video with fewer frames gives as many as it has of the form 1 + `shorten` k; None repeats frames.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of images.
    """
    if isinstance(medium, np.ndarray) or (isinstance(medium, Path) and medium.is_dir()):
        stills = _frame_arrays(medium) if isinstance(medium, np.ndarray) else _frame_files(medium)
        frames = _shortened(frames, len(stills), shorten)
        chosen = choose_frames([float(i) for i in range(len(stills))], frames)
        return np.stack([read_image(stills[i], size, smallest=smallest) for i in chosen])
    try:
        return _decode(medium, size, frames, fps, position, smallest, shorten)
    except import_av(describe(medium)).FFmpegError as error:
        raise Fault("corrupt_video", f"{describe(medium)}: {error}") from error


def _shortened(frames: int, available: int, step: int | None) -> int:
    """How many frames to take of those available."""
    return frames if step is None else min(frames, 1 + (available - 1) // step * step)


def _time_stamps(medium: Path | bytes, container: Any) -> tuple[list[int], list[int], float, bool]:
    """Time stamps of all frames and of key frames, seconds per unit, and whether the file has time stamps.

    Nothing is decoded, and the container is at its end afterwards. A file without time stamps gets frame numbers, and
    no key frames.
    """
    stream = container.streams.video[0]
    packets = [
        (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size
    ]
    rate, unit = float(stream.average_rate or 25), float(stream.time_base or 0)
    if not packets:
        raise Fault("no_frames", f"{describe(medium)} has a video stream without frames")
    if unit and all(pts is not None for pts, _ in packets):
        return sorted(p for p, _ in packets), sorted(p for p, key in packets if key), unit, True
    return list(range(len(packets))), [], 1 / rate, False


def _decode(
    medium: Path | bytes,
    size: Size,
    frames: int,
    fps: float | None,
    position: float,
    smallest: int,
    shorten: int | None,
) -> Video:
    """The chosen frames. Decoding starts at the key frame before each, and skips stretches without a chosen frame."""
    with contextlib.ExitStack() as opened:
        container = opened.enter_context(_open_video(medium))
        stamps, keys, unit, stamped = _time_stamps(medium, container)
        frames = _shortened(frames, len(stamps), shorten)
        indices = choose_frames([stamp * unit for stamp in stamps], frames, fps, position)
        # Opening takes as long as decoding a dozen frames; formats with an index can seek back instead.
        ended = bool(keys and _INDEXED_CONTAINERS & set(container.format.name.split(",")))
        if not ended:
            container = opened.enter_context(_open_video(medium))
        stream, converter = container.streams.video[0], _converter(medium)
        pixels: dict[int, np.ndarray] = {}
        decoder, at, current = container.decode(stream), -1, None
        for index in sorted(set(indices)):
            before = bisect.bisect_right(keys, stamps[index]) - 1
            if ended or (before > 0 and (at < 0 or keys[before] > stamps[at])):
                container.seek(keys[max(before, 0)], stream=stream)
                decoder, ended = container.decode(stream), False
            while at < index:
                frame = next(decoder, None)
                if frame is None:  # Fewer frames than packets: the last one is kept.
                    break
                current = frame
                at = bisect.bisect_right(stamps, frame.pts) - 1 if stamped else at + 1
            if current is None:
                raise Fault(
                    "no_frames", f"{describe(medium)} has packets, but no frame can be decoded"
                )
            image = _to_image(current, converter)
            check_size(medium, Size(image.height, image.width), smallest)
            pixels[index] = fit(image, size)
    return np.stack([pixels[index] for index in indices])


def load_video(path: str | Path, size: tuple[int, int], frames: int, step: int = 4) -> Video:
    """Frames of one video file that is not part of a data set, evenly spaced from first to last (`read_video`).

    Args:
        path: the file.
        size: (height, width) to which frames are scaled and cropped.
        frames: how many, `1 + step * k`. A shorter video gives as many as it has of this form.
        step: frames per latent frame.

    Raises:
        ModuleNotFoundError: `av` is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: it is not a video that can be read, it has no frames, or `frames` has another form.
    """
    path = Path(path)
    try:
        check_frames(frames, step)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
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
