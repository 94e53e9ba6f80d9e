"""Pictures and clips from files, at the size that a batch wants: uint8 pixels, nothing normalised.

Every failure that is the file's fault is a `Fault` (bad_rows.py); a failing disk or a missing decoder is not.
"""

from __future__ import annotations

import bisect
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.bad_rows import Fault
from tuna_jax.data.pictures import upright

SMALLEST_SIDE = 16
_ORIENTATION = 0x0112  # EXIF's tag; values from 5 on lie on their side
_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """Pixels of a picture."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def _read(path: Path) -> bytes:
    """A file's bytes, read in one go: later errors are then about its content, not about the disk."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Fault("missing_file", f"{path} is not there") from error


def _check_size(path: Path, size: Size, smallest: int) -> Size:
    if min(size.height, size.width) < smallest:
        raise Fault("tiny_image", f"{path} has {size} pixels; a side has at least {smallest}")
    return size


def image_size(path: Path, *, smallest: int = SMALLEST_SIDE) -> Size:
    """A picture's size as one sees it (EXIF orientation applied), from its header alone.

    Raises:
        Fault: missing_file, corrupt_image (its header), or tiny_image.
    """
    try:
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Fault("missing_file", f"{path} is not there") from error
    with file:
        try:
            with Image.open(file) as opened:
                width, height = opened.size
                # PNG may keep its EXIF after the pixels: reading that would decode them.
                turned = "exif" in opened.info and opened.getexif().get(_ORIENTATION, 1) >= 5
        except Exception as error:  # Pillow's plugins raise almost anything on broken headers
            raise Fault("corrupt_image", f"{path}: {error}") from error
    size = Size(width, height) if turned else Size(height, width)
    return _check_size(path, size, smallest)


def fit(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB picture scaled (bicubic, antialiased) until it covers `size`, and cropped to its middle."""
    scale = min(image.width / size.width, image.height / size.height)
    width, height = size.width * scale, size.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    resized = image.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, np.uint8)


def read_image(
    path: Path, size: Size, *, smallest: int = SMALLEST_SIDE
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a file at a size: turned upright, transparency on white, scaled and cropped (`fit`).

    A JPEG far larger than wanted is decoded at a half, a quarter or an eighth, never below twice the size.

    Raises:
        Fault: missing_file, corrupt_image (anywhere), or tiny_image.
    """
    content = _read(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            _check_size(path, Size(opened.height, opened.width), smallest)
            side = 2 * max(size.height, size.width)  # either way up
            opened.draft("RGB", (side, side))
            image = upright(opened)
    except (Fault, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise Fault("corrupt_image", f"{path}: {error}") from error
    return fit(image, size)


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


def _converter(path: Path) -> Any:
    """Turns frames into RGB."""
    return import_av(path).video.reformatter.VideoReformatter()


def _open_video(path: Path) -> Any:
    """A container with one decoder thread: Grain's threads share the cores already."""
    av = import_av(path)
    try:
        with path.open("rb"):
            pass
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Fault("missing_file", f"{path} is not there") from error
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise Fault("corrupt_video", f"{path}: {error}") from error
    if not container.streams.video:
        container.close()
        raise Fault("no_frames", f"{path} has no video stream")
    container.streams.video[0].codec_context.thread_count = 1
    return container


def _frame_files(folder: Path) -> list[Path]:
    """A clip that lies as a folder of pictures, in order of their names."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _FRAME_SUFFIXES)
    if not files:
        raise Fault("no_frames", f"the folder {folder} has no pictures ({_FRAME_SUFFIXES})")
    return files


def _to_image(frame: Any, converter: Any) -> Image.Image:
    """A decoded frame as one sees it: phones store a turn beside the pixels.

    `converter` is a clip's own: a frame's `to_image` would set one up every time, which takes most of the time.
    """
    image = Image.fromarray(converter.reformat(frame, format="rgb24").to_ndarray())
    turn = round(getattr(frame, "rotation", 0) or 0) % 360
    return image.rotate(turn, expand=True) if turn else image


def video_size(path: Path, *, smallest: int = SMALLEST_SIDE) -> Size:
    """A clip's size as one sees it, from its first frame.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of pictures.
    """
    if path.is_dir():
        return image_size(_frame_files(path)[0], smallest=smallest)
    with _open_video(path) as container:
        try:
            first = next(container.decode(video=0), None)
        except import_av(path).FFmpegError as error:
            raise Fault("corrupt_video", f"{path}: {error}") from error
        if first is None:
            raise Fault("no_frames", f"{path} has a video stream without frames")
        image = _to_image(first, _converter(path))
    return _check_size(path, Size(image.height, image.width), smallest)


def read_video(
    path: Path,
    size: Size,
    frames: int,
    *,
    fps: float | None = None,
    place: float = 0.0,
    smallest: int = SMALLEST_SIDE,
    shorten: int | None = None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames of a clip (a file that FFmpeg reads, or a folder of pictures), each scaled and cropped (`fit`).

    Args:
        path: the file or folder; a folder has no clock, its frames are always spread evenly.
        size: of every frame.
        frames: how many, 1 + 4k for a VAE that halves time twice (`check_frames`).
        fps: see `choose_frames`.
        place: see `choose_frames`.
        smallest: the least side of a usable clip.
        shorten: of a clip with fewer frames, take the most that are 1 + `shorten` k; None repeats some instead.

    Raises:
        Fault: missing_file, corrupt_video, no_frames, tiny_image; corrupt_image in a folder of pictures.
    """
    if path.is_dir():
        files = _frame_files(path)
        frames = _shortened(frames, len(files), shorten)
        chosen = choose_frames([float(i) for i in range(len(files))], frames)
        return np.stack([read_image(files[i], size, smallest=smallest) for i in chosen])
    try:
        return _decode(path, size, frames, fps, place, smallest, shorten)
    except import_av(path).FFmpegError as error:
        raise Fault("corrupt_video", f"{path}: {error}") from error


def _shortened(frames: int, there: int, step: int | None) -> int:
    """How many frames to take of those that are there."""
    return frames if step is None else min(frames, 1 + (there - 1) // step * step)


def _time_stamps(path: Path) -> tuple[list[int], list[int], float, bool]:
    """Of a clip: frames' time stamps, those of key frames, a unit's seconds, and whether it has any.

    Nothing is decoded. A container without time stamps gets the frames' numbers, and no key frames.
    """
    with _open_video(path) as container:
        stream = container.streams.video[0]
        packets = [
            (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size
        ]
        rate, unit = float(stream.average_rate or 25), float(stream.time_base or 0)
    if not packets:
        raise Fault("no_frames", f"{path} has a video stream without frames")
    if unit and all(pts is not None for pts, _ in packets):
        return sorted(p for p, _ in packets), sorted(p for p, key in packets if key), unit, True
    return list(range(len(packets))), [], 1 / rate, False


def _decode(
    path: Path,
    size: Size,
    frames: int,
    fps: float | None,
    place: float,
    smallest: int,
    shorten: int | None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """The chosen frames; only the stretches that hold one, from the key frame before it, are decoded."""
    stamps, keys, unit, stamped = _time_stamps(path)
    frames = _shortened(frames, len(stamps), shorten)
    wanted = choose_frames([stamp * unit for stamp in stamps], frames, fps, place)
    found: dict[int, np.ndarray] = {}
    converter = _converter(path)
    with _open_video(path) as container:
        stream = container.streams.video[0]
        decoder, at, shown = container.decode(stream), -1, None
        for index in sorted(set(wanted)):
            before = bisect.bisect_right(keys, stamps[index]) - 1
            if before > 0 and (at < 0 or keys[before] > stamps[at]):
                container.seek(keys[before], stream=stream)
                decoder = container.decode(stream)
            while at < index:
                frame = next(decoder, None)
                if frame is None:  # fewer frames than packets: the last one stays
                    break
                shown = frame
                at = bisect.bisect_right(stamps, frame.pts) - 1 if stamped else at + 1
            if shown is None:
                raise Fault("no_frames", f"{path} has packets, but no frame can be decoded")
            image = _to_image(shown, converter)
            _check_size(path, Size(image.height, image.width), smallest)
            found[index] = fit(image, size)
    return np.stack([found[index] for index in wanted])
