"""Clips at the size that a batch wants: which frames to take, and how to get at them without decoding the rest.

Every failure that is the file's fault is a `Fault` (invalid_examples.py); a failing disk or a missing decoder is not.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Sequence
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
    called,
    check_size,
    fit,
    image_size,
    open_medium,
    read_image,
)

_INDEXED = {"mov", "matroska"}
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def check_frames(frames: int, temporal_factor: int = 4) -> int:
    """The latent frames of a clip of `frames` = 1 + 4k; ValueError names the nearest that is."""
    if frames < 1 or (frames - 1) % temporal_factor:
        below = max(1, (frames - 1) // temporal_factor * temporal_factor + 1)
        raise ValueError(
            f"{frames} frames is not 1 + {temporal_factor}k, which the video VAE takes; "
            f"the nearest are {below} and {below + temporal_factor}"
        )
    return 1 + (frames - 1) // temporal_factor


def choose_frames(
    times: Sequence[float], frames: int, fps: float | None = None, place: float = 0.0
) -> list[int]:
    """Which frames of a clip to take.

    Args:
        times: seconds of each frame, ascending.
        frames: how many to take.
        fps: None spreads them evenly over the whole clip, first and last included; else that many a second.
            A clip shorter than (frames - 1) / fps is spread evenly too, rather than held at its end.
        place: where in the clip the frames of `fps` begin, from 0 (as early as can be) to 1 (as late).

    Returns:
        Ascending indices; a clip with fewer frames than wanted repeats some, evenly.
    """
    span = (frames - 1) / fps if fps else math.inf
    slack = times[-1] - times[0] - span
    if slack < 0 or frames == 1:
        start, end = (0, len(times) - 1) if frames > 1 else (0, 0)
        return [round(float(at)) for at in np.linspace(start, end, frames)]
    begin = times[0] + place * slack
    wanted = begin + np.arange(frames) * span / (frames - 1)
    # The frame that is shown at that moment; the tiny addition absorbs rounding of time stamps.
    shown = np.searchsorted(np.asarray(times), wanted + 1e-6, side="right") - 1
    return [int(index) for index in np.clip(shown, 0, len(times) - 1)]


def import_av(path: str | Path) -> Any:
    """The package; ModuleNotFoundError tells for which video it is wanted, and how to get it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path} is a video, which wants the package av (FFmpeg's libraries): pip install av"
        ) from error
    return av


def _converter(medium: Path | bytes) -> Any:
    """Turns frames into RGB."""
    return import_av(called(medium)).video.reformatter.VideoReformatter()


def _open_video(medium: Path | bytes) -> Any:
    """A container with one decoder thread: Grain's threads share the cores already."""
    av = import_av(called(medium))
    opened = open_medium(medium)  # a file that is missing is told apart
    if isinstance(medium, Path):
        opened.close()
    try:
        container = av.open(str(medium) if isinstance(medium, Path) else opened)
    except av.FFmpegError as error:
        raise Fault("corrupt_video", f"{called(medium)}: {error}") from error
    if not container.streams.video:
        container.close()
        raise Fault("no_frames", f"{called(medium)} has no video stream")
    container.streams.video[0].codec_context.thread_count = 1
    return container


def _frame_files(folder: Path) -> list[Path]:
    """A clip that lies as a folder of pictures, in order of their names."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES)
    if not files:
        raise Fault("no_frames", f"the folder {folder} has no pictures ({_FRAME_SUFFIXES})")
    return files


def _frame_arrays(clip: UInt8[np.ndarray, "*extent"]) -> list[np.ndarray]:
    """A clip that is there as pixels."""
    if clip.ndim != 4 or not len(clip):
        raise Fault("no_frames", f"an array of shape {list(clip.shape)} is no clip [f, h, w, c]")
    return list(clip)


def _to_image(frame: Any, converter: Any) -> Image.Image:
    """A decoded frame as one sees it: phones store a turn beside the pixels.

    `converter` is a clip's own: a frame's `to_image` would set one up every time, which takes most of the time.
    """
    image = Image.fromarray(converter.reformat(frame, format="rgb24").to_ndarray())
    turn = round(getattr(frame, "rotation", 0) or 0) % 360
    return image.rotate(turn, expand=True) if turn else image


def video_size(medium: Pixels, *, smallest: int = SMALLEST_SIDE) -> Size:
    """A clip's size as one sees it, from its first frame.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of pictures.
    """
    if isinstance(medium, np.ndarray):
        return image_size(_frame_arrays(medium)[0], smallest=smallest)
    if isinstance(medium, Path) and medium.is_dir():
        return image_size(_frame_files(medium)[0], smallest=smallest)
    with _open_video(medium) as container:
        try:
            first = next(container.decode(video=0), None)
        except import_av(called(medium)).FFmpegError as error:
            raise Fault("corrupt_video", f"{called(medium)}: {error}") from error
        if first is None:
            raise Fault("no_frames", f"{called(medium)} has a video stream without frames")
        image = _to_image(first, _converter(medium))
    return check_size(medium, Size(image.height, image.width), smallest)


def read_video(
    medium: Pixels,
    size: Size,
    frames: int,
    *,
    fps: float | None = None,
    place: float = 0.0,
    smallest: int = SMALLEST_SIDE,
    shorten: int | None = None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames of a clip (what FFmpeg reads, a folder of pictures, or pixels), each scaled and cropped (`fit`).

    Args:
        medium: the file, its bytes, the folder or the pixels; the last two have no clock, and are spread evenly.
        size: of every frame.
        frames: how many, 1 + 4k for a VAE that halves time twice (`check_frames`).
        fps: see `choose_frames`.
        place: see `choose_frames`.
        smallest: the least side of a usable clip.
        shorten: of a clip with fewer frames, take the most that are 1 + `shorten` k; None repeats some instead.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of pictures.
    """
    if isinstance(medium, np.ndarray) or (isinstance(medium, Path) and medium.is_dir()):
        stills = _frame_arrays(medium) if isinstance(medium, np.ndarray) else _frame_files(medium)
        frames = _shortened(frames, len(stills), shorten)
        chosen = choose_frames([float(i) for i in range(len(stills))], frames)
        return np.stack([read_image(stills[i], size, smallest=smallest) for i in chosen])
    try:
        return _decode(medium, size, frames, fps, place, smallest, shorten)
    except import_av(called(medium)).FFmpegError as error:
        raise Fault("corrupt_video", f"{called(medium)}: {error}") from error


def _shortened(frames: int, there: int, step: int | None) -> int:
    """How many frames to take of those that are there."""
    return frames if step is None else min(frames, 1 + (there - 1) // step * step)


def _time_stamps(medium: Path | bytes, container: Any) -> tuple[list[int], list[int], float, bool]:
    """Of a clip: frames' time stamps, those of key frames, a unit's seconds, and whether it has any.

    Nothing is decoded, and the container is at its end afterwards. One without time stamps gets the frames' numbers,
    and no key frames.
    """
    stream = container.streams.video[0]
    packets = [
        (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size
    ]
    rate, unit = float(stream.average_rate or 25), float(stream.time_base or 0)
    if not packets:
        raise Fault("no_frames", f"{called(medium)} has a video stream without frames")
    if unit and all(pts is not None for pts, _ in packets):
        return sorted(p for p, _ in packets), sorted(p for p, key in packets if key), unit, True
    return list(range(len(packets))), [], 1 / rate, False


def _decode(
    medium: Path | bytes,
    size: Size,
    frames: int,
    fps: float | None,
    place: float,
    smallest: int,
    shorten: int | None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """The chosen frames; only the stretches that hold one, from the key frame before it, are decoded."""
    with contextlib.ExitStack() as opened:
        container = opened.enter_context(_open_video(medium))
        stamps, keys, unit, stamped = _time_stamps(medium, container)
        frames = _shortened(frames, len(stamps), shorten)
        wanted = choose_frames([stamp * unit for stamp in stamps], frames, fps, place)
        # Opening takes as long as decoding a dozen frames; formats with an index go back without it.
        ended = bool(keys and _INDEXED & set(container.format.name.split(",")))
        if not ended:
            container = opened.enter_context(_open_video(medium))
        stream, converter = container.streams.video[0], _converter(medium)
        found: dict[int, np.ndarray] = {}
        decoder, at, shown = container.decode(stream), -1, None
        for index in sorted(set(wanted)):
            before = bisect.bisect_right(keys, stamps[index]) - 1
            if ended or (before > 0 and (at < 0 or keys[before] > stamps[at])):
                container.seek(keys[max(before, 0)], stream=stream)
                decoder, ended = container.decode(stream), False
            while at < index:
                frame = next(decoder, None)
                if frame is None:  # fewer frames than packets: the last one stays
                    break
                shown = frame
                at = bisect.bisect_right(stamps, frame.pts) - 1 if stamped else at + 1
            if shown is None:
                raise Fault(
                    "no_frames", f"{called(medium)} has packets, but no frame can be decoded"
                )
            image = _to_image(shown, converter)
            check_size(medium, Size(image.height, image.width), smallest)
            found[index] = fit(image, size)
    return np.stack([found[index] for index in wanted])
